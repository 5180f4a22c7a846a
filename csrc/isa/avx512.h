// The vector type of AVX-512 (F, BW, DQ, VL, VNNI): 16 floats, 32 codes or 64 bytes. For the files that
// define BAIZE_TARGET, the attribute of every function that uses it: avx512.cpp, and amx.cpp, whose tiles are
// the only difference.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "csrc/product.h"

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC bug 105593: its own AVX-512 headers warn
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace baize {

// Why this processor lacks what the vector type uses; nullptr if it has it.
const char* why_not_avx512();

namespace {

// Rows and tokens of register blocks: as many sums as the 32 registers hold beside the operands.
struct Blocks {
    static constexpr size_t single_rows = 4, panel_rows = 48, float_rows = 4, float_tokens = 6;
    static constexpr size_t int8_rows = 4, code_tokens = 4;
    static constexpr size_t few_at_once = 8;  // tokens of int8 that one register block may take
    static constexpr size_t few_of_int8 = 64;  // tokens up to which int8 rows are read in place
    // of int4: vectors of rows and tokens of a register block, and the same for the most tokens that need no
    // unpacked rows
    static constexpr size_t int4_vectors = 2, int4_tokens = 4, few_int4_vectors = 2, few_int4_tokens = 8;
};

struct Vec {
    using F = __m512;
    using I = __m512i;  // sixteen totals
    using S = __m512i;  // thirty-two int16
    static constexpr size_t width = 16, shorts = 32;
    static constexpr bool widens_halves = true;  // whether a load of float16 is an instruction

    BAIZE_TARGET static F zero() { return _mm512_setzero_ps(); }
    BAIZE_TARGET static F all(float value) { return _mm512_set1_ps(value); }
    BAIZE_TARGET static F load(const float* at) { return _mm512_loadu_ps(at); }
    BAIZE_TARGET static void store(float* at, F value) { _mm512_storeu_ps(at, value); }
    BAIZE_TARGET static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    BAIZE_TARGET static F add(F a, F b) { return _mm512_add_ps(a, b); }
    BAIZE_TARGET static F subtract(F a, F b) { return _mm512_sub_ps(a, b); }
    BAIZE_TARGET static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    BAIZE_TARGET static F div(F a, F b) { return _mm512_div_ps(a, b); }
    // Returns the second operand, a, if one is NaN.
    BAIZE_TARGET static F greater(F a, F b) { return _mm512_max_ps(b, a); }
    BAIZE_TARGET static F lesser(F a, F b) { return _mm512_min_ps(b, a); }
    BAIZE_TARGET static float sum(F value) {
        const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps(value, 1));
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    BAIZE_TARGET static F nearest(F value) {
        return _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    BAIZE_TARGET static F times_power(F value, F power) { return _mm512_scalef_ps(value, power); }

    template <Dtype D>
    BAIZE_TARGET static F load_as(const uint8_t* at) {
        if constexpr (D == Dtype::float32) {
            return _mm512_loadu_ps(at);
        } else {
            const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
            if constexpr (D == Dtype::float16) return _mm512_cvtph_ps(halves);
            return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
        }
    }

    // For bfloat16 a NaN must be canonical.
    template <Dtype D>
    BAIZE_TARGET static void store_as(uint8_t* at, F value) {
        if constexpr (D == Dtype::float32) {
            _mm512_storeu_ps(at, value);
        } else {
            __m256i halves;
            if constexpr (D == Dtype::float16) {
                halves = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
            } else {  // not vcvtneps2bf16, which flushes denormals
                const __m512i bits = _mm512_castps_si512(value);
                const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
                const __m512i rounded =
                    _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
                halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
            }
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), halves);
        }
    }
    BAIZE_TARGET static uint16_t to_half(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
    BAIZE_TARGET static float from_half(uint16_t half) { return _cvtsh_ss(half); }

    // For diff_add: NaNs made one, the sum of each lane in float64, whether a magnitude (as bits) is at least
    // `limit`.
    BAIZE_TARGET static F canonical(F value) {
        const __m512 nan = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000));
        return _mm512_mask_mov_ps(value, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), nan);
    }
    BAIZE_TARGET static void accumulate(double* lanes, F value) {
        const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(value));
        const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1));
        const __m512d first = _mm512_add_pd(_mm512_loadu_pd(lanes), low);
        const __m512d second = _mm512_add_pd(_mm512_loadu_pd(lanes + 8), high);
        _mm512_storeu_pd(lanes, first);
        _mm512_storeu_pd(lanes + 8, second);
    }
    BAIZE_TARGET static bool any_at_least(F value, uint32_t limit) {
        const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(0x7fffffff));
        return _mm512_cmpge_epu32_mask(magnitude, _mm512_set1_epi32(int(limit))) != 0;
    }

    BAIZE_TARGET static F magnitude(F value) { return _mm512_abs_ps(value); }
    BAIZE_TARGET static float greatest(F value) { return _mm512_reduce_max_ps(value); }
    // the sum() of each of sixteen vectors, by the same tree
    BAIZE_TARGET static F sums(const F* v) {
        F eight[8], four[4];
#pragma GCC unroll 8
        for (int n = 0; n < 8; ++n)
            eight[n] = _mm512_add_ps(_mm512_shuffle_f32x4(v[n], v[n + 8], 0x44),
                                     _mm512_shuffle_f32x4(v[n], v[n + 8], 0xee));
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n)  // vectors n, 8 + n, 4 + n and 12 + n, one per lane
            four[n] = _mm512_add_ps(_mm512_shuffle_f32x4(eight[n], eight[n + 4], 0x88),
                                    _mm512_shuffle_f32x4(eight[n], eight[n + 4], 0xdd));
        const F first = _mm512_add_ps(_mm512_shuffle_ps(four[0], four[1], 0x44),
                                      _mm512_shuffle_ps(four[0], four[1], 0xee));
        const F second = _mm512_add_ps(_mm512_shuffle_ps(four[2], four[3], 0x44),
                                       _mm512_shuffle_ps(four[2], four[3], 0xee));
        const F one =
            _mm512_add_ps(_mm512_shuffle_ps(first, second, 0x88), _mm512_shuffle_ps(first, second, 0xdd));
        return _mm512_shuffle_f32x4(one, one, 0xd8);
    }

    BAIZE_TARGET static void transpose(F (&rows)[width]) {  // rows[k][n] = the previous rows[n][k]
        F some[width];
#pragma GCC unroll 8
        for (size_t n = 0; n < width; n += 2) {
            some[n] = _mm512_unpacklo_ps(rows[n], rows[n + 1]);
            some[n + 1] = _mm512_unpackhi_ps(rows[n], rows[n + 1]);
        }
#pragma GCC unroll 4
        // rows[n + k]: columns k, 4 + k, 8 + k, 12 + k of rows n to n + 3, one per lane.
        for (size_t n = 0; n < width; n += 4) {
            rows[n + 0] = _mm512_shuffle_ps(some[n], some[n + 2], 0x44);
            rows[n + 1] = _mm512_shuffle_ps(some[n], some[n + 2], 0xee);
            rows[n + 2] = _mm512_shuffle_ps(some[n + 1], some[n + 3], 0x44);
            rows[n + 3] = _mm512_shuffle_ps(some[n + 1], some[n + 3], 0xee);
        }
#pragma GCC unroll 4
        for (size_t k = 0; k < 4; ++k) {
            const F low = _mm512_shuffle_f32x4(rows[k], rows[4 + k], 0x88);
            const F high = _mm512_shuffle_f32x4(rows[k], rows[4 + k], 0xdd);
            const F low2 = _mm512_shuffle_f32x4(rows[8 + k], rows[12 + k], 0x88);
            const F high2 = _mm512_shuffle_f32x4(rows[8 + k], rows[12 + k], 0xdd);
            some[k] = _mm512_shuffle_f32x4(low, low2, 0x88);
            some[4 + k] = _mm512_shuffle_f32x4(high, high2, 0x88);
            some[8 + k] = _mm512_shuffle_f32x4(low, low2, 0xdd);
            some[12 + k] = _mm512_shuffle_f32x4(high, high2, 0xdd);
        }
        for (size_t n = 0; n < width; ++n) rows[n] = some[n];
    }

    BAIZE_TARGET static I no_total() { return _mm512_setzero_si512(); }
    BAIZE_TARGET static S load_shorts(const int16_t* at) { return _mm512_loadu_si512(at); }
    BAIZE_TARGET static void store_shorts(int16_t* at, S value) { _mm512_storeu_si512(at, value); }
    BAIZE_TARGET static S load_codes(const uint8_t* at) {
        return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    }
    BAIZE_TARGET static I products(S a, S b) { return _mm512_dpwssd_epi32(no_total(), a, b); }
    // Assembly, here and in add_quads, because GCC copies the totals of the intrinsics between registers
    // around every loop.
    BAIZE_TARGET static I add_products(I total, S a, S b) {
        __asm__("vpdpwssd %2, %1, %0" : "+v"(total) : "v"(a), "v"(b));
        return total;
    }
    BAIZE_TARGET static I load_total(const int32_t* at) { return _mm512_loadu_si512(at); }
    BAIZE_TARGET static void store_total(int32_t* at, I value) { _mm512_storeu_si512(at, value); }
    BAIZE_TARGET static I all_totals(int32_t value) { return _mm512_set1_epi32(value); }
    BAIZE_TARGET static F to_float(I total) { return _mm512_cvtepi32_ps(total); }
    BAIZE_TARGET static I to_int(F value) { return _mm512_cvtps_epi32(value); }

    BAIZE_TARGET static void encode(const float* x, F inverse, int16_t* codes) {
        for (size_t k = 0; k < kSection; k += 16) {
            const __m256i some =
                _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(load(x + k), inverse)));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + k), some);
        }
    }

    // int4 (generic/int4_tile.h): four columns a lane, with quad_bias added, because vpdpbusd takes
    // unsigned by signed bytes.
    using Quads = __m512i;
    using Odd = __mmask16;
    static constexpr int quad_bias = 128;
    BAIZE_TARGET static void unpack_quads(const uint8_t* at, Quads& low, Quads& high) {
        const __m512i codes = _mm512_loadu_si512(at), mask = _mm512_set1_epi8(15);
        const __m512i values = _mm512_xor_si512(
            _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kInt4Values))),
            _mm512_set1_epi8(-128));
        low = _mm512_shuffle_epi8(values, _mm512_and_si512(codes, mask));
        high = _mm512_shuffle_epi8(values, _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask));
    }
    BAIZE_TARGET static Quads shifted(Quads weights, Odd odd) {  // plus kInt4Shift where scales are odd
        return _mm512_add_epi8(weights, _mm512_maskz_set1_epi32(odd, kInt4Shift * 0x01010101));
    }
    BAIZE_TARGET static Quads all_quads(const void* at) {  // four codes in every lane
        int32_t four;
        std::memcpy(&four, at, 4);
        return _mm512_set1_epi32(four);
    }
    BAIZE_TARGET static I add_quads(I total, Quads weights, Quads token) {
        __asm__("vpdpbusd %2, %1, %0" : "+v"(total) : "v"(weights), "v"(token));
        return total;
    }
    BAIZE_TARGET static I plus(I a, I b) { return _mm512_add_epi32(a, b); }
    BAIZE_TARGET static I plus_256_times(I low, I high) {
        return _mm512_add_epi32(low, _mm512_slli_epi32(high, 8));
    }
    BAIZE_TARGET static F widen_scales(const int8_t* at) {
        return to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
    }
    BAIZE_TARGET static Odd odd_scales(const int8_t* at) {
        return _mm_movepi8_mask(_mm_slli_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)), 7));
    }
    BAIZE_TARGET static I start(const int32_t* at, Odd odd) {  // at[0] where the scale is even, else at[1]
        return _mm512_mask_set1_epi32(_mm512_set1_epi32(at[0]), odd, at[1]);
    }

    using B = __m512i;  // sixty-four bytes
    static constexpr size_t bytes = 64;
    BAIZE_TARGET static B load_bytes(const void* at) { return _mm512_loadu_si512(at); }
    BAIZE_TARGET static void biased8(const uint8_t* from, uint8_t* to) {  // int8 with 128 added
        _mm512_storeu_si512(to, _mm512_xor_si512(load_bytes(from), _mm512_set1_epi8(-128)));
    }
    // Returns the codes' sum.
    template <size_t count>
    BAIZE_TARGET static int32_t encode_signed(const float* x, F inverse, int8_t* codes) {
        I sum = no_total();
        for (size_t k = 0; k < count; k += width) {
            const I code = _mm512_cvtps_epi32(_mm512_mul_ps(load(x + k), inverse));
            sum = _mm512_add_epi32(sum, code);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + k), _mm512_cvtepi32_epi8(code));
        }
        return _mm512_reduce_add_epi32(sum);
    }
};

using F = Vec::F;

}  // namespace

}  // namespace baize
