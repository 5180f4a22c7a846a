// The vector type of AVX2 with FMA and F16C: 8 floats, 16 codes or 32 bytes; and of AVX-VNNI for the file
// that defines BAIZE_AVX_VNNI.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "csrc/product.h"

namespace baize {

namespace {

// Rows and tokens of register blocks: as many sums as the 16 registers hold beside the operands.
struct Blocks {
    static constexpr size_t single_rows = 4, panel_rows = 48, float_rows = 3, float_tokens = 4;
    static constexpr size_t int8_rows = 2, code_tokens = 4, byte_rows = 4, byte_tokens = 3;
    static constexpr size_t few_at_once = 4;  // tokens of int8 that one register block may take
    static constexpr size_t few_of_int8 = 16;  // tokens up to which int8 rows are read in place
    // of int4: vectors of rows and tokens of a register block, and the same for the most tokens that need no
    // unpacked rows
    static constexpr size_t int4_vectors = 2, int4_tokens = 3, few_int4_vectors = 2, few_int4_tokens = 4;
};

struct Vec {
    using F = __m256;
    using I = __m256i;  // eight totals
    using S = __m256i;  // sixteen int16
    static constexpr size_t width = 8, shorts = 16;
    static constexpr bool widens_halves = true;  // whether a load of float16 is an instruction

    BAIZE_TARGET static F zero() { return _mm256_setzero_ps(); }
    BAIZE_TARGET static F all(float value) { return _mm256_set1_ps(value); }
    BAIZE_TARGET static F load(const float* at) { return _mm256_loadu_ps(at); }
    BAIZE_TARGET static void store(float* at, F value) { _mm256_storeu_ps(at, value); }
    BAIZE_TARGET static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    BAIZE_TARGET static F add(F a, F b) { return _mm256_add_ps(a, b); }
    BAIZE_TARGET static F subtract(F a, F b) { return _mm256_sub_ps(a, b); }
    BAIZE_TARGET static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    BAIZE_TARGET static F div(F a, F b) { return _mm256_div_ps(a, b); }
    // Returns the second operand, a, if one is NaN.
    BAIZE_TARGET static F greater(F a, F b) { return _mm256_max_ps(b, a); }
    BAIZE_TARGET static F lesser(F a, F b) { return _mm256_min_ps(b, a); }
    BAIZE_TARGET static float sum(F value) {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    BAIZE_TARGET static F nearest(F value) {
        return _mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    BAIZE_TARGET static F times_power(F value, F power) {
        const __m256i exponent =
            _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127)), 23);
        return _mm256_mul_ps(value, _mm256_castsi256_ps(exponent));
    }

    template <Dtype D>
    BAIZE_TARGET static F load_as(const uint8_t* at) {
        if constexpr (D == Dtype::float32) {
            return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
        } else {
            const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
            if constexpr (D == Dtype::float16) return _mm256_cvtph_ps(halves);
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
        }
    }

    // For bfloat16 a NaN must be canonical.
    template <Dtype D>
    BAIZE_TARGET static void store_as(uint8_t* at, F value) {
        if constexpr (D == Dtype::float32) {
            _mm256_storeu_ps(reinterpret_cast<float*>(at), value);
        } else {
            __m128i halves;
            if constexpr (D == Dtype::float16) {
                halves = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
            } else {
                const __m256i bits = _mm256_castps_si256(value);
                const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
                const __m256i rounded =
                    _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
                const __m256i high = _mm256_srli_epi32(rounded, 16);
                halves = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
            }
            _mm_storeu_si128(reinterpret_cast<__m128i*>(at), halves);
        }
    }
    BAIZE_TARGET static uint16_t to_half(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
    BAIZE_TARGET static float from_half(uint16_t half) { return _cvtsh_ss(half); }

    // For diff_add: NaNs made one, the sum of each lane in float64, whether a magnitude (as bits) is at least
    // `limit`.
    BAIZE_TARGET static F canonical(F value) {
        const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
        return _mm256_blendv_ps(value, nan, _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    }
    BAIZE_TARGET static void accumulate(double* lanes, F value) {
        const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(value));
        const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1));
        const __m256d first = _mm256_add_pd(_mm256_loadu_pd(lanes), low);
        const __m256d second = _mm256_add_pd(_mm256_loadu_pd(lanes + 4), high);
        _mm256_storeu_pd(lanes, first);
        _mm256_storeu_pd(lanes + 4, second);
    }
    BAIZE_TARGET static bool any_at_least(F value, uint32_t limit) {
        const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(value), _mm256_set1_epi32(0x7fffffff));
        return _mm256_movemask_epi8(_mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(int(limit - 1)))) != 0;
    }

    BAIZE_TARGET static F magnitude(F value) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), value); }
    BAIZE_TARGET static float greatest(F value) {
        const __m128 four = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
    }
    // the sum() of each of eight vectors, by the same tree
    BAIZE_TARGET static F sums(const F* v) {
        F two[4];
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) {
            const F a = v[n], b = v[n + 4];
            two[n] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
        }
        const F first =
            _mm256_add_ps(_mm256_shuffle_ps(two[0], two[1], 0x44), _mm256_shuffle_ps(two[0], two[1], 0xee));
        const F second =
            _mm256_add_ps(_mm256_shuffle_ps(two[2], two[3], 0x44), _mm256_shuffle_ps(two[2], two[3], 0xee));
        return _mm256_add_ps(_mm256_shuffle_ps(first, second, 0x88), _mm256_shuffle_ps(first, second, 0xdd));
    }

    BAIZE_TARGET static void transpose(F (&rows)[width]) {  // rows[k][n] = the previous rows[n][k]
        F pairs[8];
#pragma GCC unroll 4
        for (size_t n = 0; n < 8; n += 2) {
            pairs[n] = _mm256_unpacklo_ps(rows[n], rows[n + 1]);
            pairs[n + 1] = _mm256_unpackhi_ps(rows[n], rows[n + 1]);
        }
#pragma GCC unroll 2
        for (size_t n = 0; n < 8; n += 4) {
            rows[n + 0] = _mm256_shuffle_ps(pairs[n], pairs[n + 2], 0x44);
            rows[n + 1] = _mm256_shuffle_ps(pairs[n], pairs[n + 2], 0xee);
            rows[n + 2] = _mm256_shuffle_ps(pairs[n + 1], pairs[n + 3], 0x44);
            rows[n + 3] = _mm256_shuffle_ps(pairs[n + 1], pairs[n + 3], 0xee);
        }
#pragma GCC unroll 4
        for (size_t n = 0; n < 4; ++n) {
            const F low = rows[n], high = rows[n + 4];
            rows[n] = _mm256_permute2f128_ps(low, high, 0x20);
            rows[n + 4] = _mm256_permute2f128_ps(low, high, 0x31);
        }
    }

    BAIZE_TARGET static I no_total() { return _mm256_setzero_si256(); }
    BAIZE_TARGET static S load_shorts(const int16_t* at) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    }
    BAIZE_TARGET static void store_shorts(int16_t* at, S value) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), value);
    }
    BAIZE_TARGET static S load_codes(const uint8_t* at) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    }
    BAIZE_TARGET static I products(S a, S b) { return _mm256_madd_epi16(a, b); }
    BAIZE_TARGET static I add_products(I total, S a, S b) {
        total = _mm256_add_epi32(total, _mm256_madd_epi16(a, b));
        __asm__("" : "+x"(total));  // keeps GCC from turning the sums into trees, which spill
        return total;
    }
    BAIZE_TARGET static I load_total(const int32_t* at) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    }
    BAIZE_TARGET static void store_total(int32_t* at, I value) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), value);
    }
    BAIZE_TARGET static I all_totals(int32_t value) { return _mm256_set1_epi32(value); }
    BAIZE_TARGET static F to_float(I total) { return _mm256_cvtepi32_ps(total); }
    BAIZE_TARGET static I to_int(F value) { return _mm256_cvtps_epi32(value); }

    BAIZE_TARGET static S rounded(const float* x, F inverse) {  // sixteen columns in order
        const I low = _mm256_cvtps_epi32(_mm256_mul_ps(load(x), inverse));
        const I high = _mm256_cvtps_epi32(_mm256_mul_ps(load(x + 8), inverse));
        return _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    }
    BAIZE_TARGET static void encode(const float* x, F inverse, int16_t* codes) {
        for (size_t k = 0; k < kSection; k += 16) store_shorts(codes + k, rounded(x + k, inverse));
    }

    // int4 (generic/int4_tile.h): four columns a lane. vpdpbusd and vpmaddubsw take unsigned by signed
    // bytes: the weights have quad_bias added, or a token's codes give their signs to them.
    using Quads = __m256i;
    using Odd = __m256i;
#if defined(BAIZE_AVX_VNNI)
    using TokenQuads = __m256i;
    static constexpr int quad_bias = 128;
    BAIZE_TARGET static TokenQuads token_quads(__m256i codes) { return codes; }
    BAIZE_TARGET static I add_quads(I total, Quads weights, TokenQuads token) {
        return _mm256_dpbusd_avx_epi32(total, weights, token);
    }
#else
    struct TokenQuads {
        __m256i codes, magnitudes;
    };
    static constexpr int quad_bias = 0;
    BAIZE_TARGET static TokenQuads token_quads(__m256i codes) { return {codes, _mm256_abs_epi8(codes)}; }
    BAIZE_TARGET static I add_quads(I total, Quads weights, const TokenQuads& token) {
        const __m256i pairs = _mm256_maddubs_epi16(token.magnitudes, _mm256_sign_epi8(weights, token.codes));
        return plus(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
#endif
    BAIZE_TARGET static void unpack_quads(const uint8_t* at, Quads& low, Quads& high) {
        const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
        const __m256i mask = _mm256_set1_epi8(15);
        const __m256i values = _mm256_add_epi8(
            _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kInt4Values))),
            _mm256_set1_epi8(int8_t(quad_bias)));
        low = _mm256_shuffle_epi8(values, _mm256_and_si256(codes, mask));
        high = _mm256_shuffle_epi8(values, _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask));
    }
    BAIZE_TARGET static Quads shifted(Quads weights, Odd odd) {  // plus kInt4Shift where scales are odd
        return _mm256_add_epi8(weights, _mm256_and_si256(odd, _mm256_set1_epi8(kInt4Shift)));
    }
    BAIZE_TARGET static TokenQuads all_quads(const int8_t* at) {  // a token's four codes in every lane
        int32_t four;
        std::memcpy(&four, at, 4);
        return token_quads(_mm256_set1_epi32(four));
    }
    BAIZE_TARGET static I plus_256_times(I low, I high) {
        return _mm256_add_epi32(low, _mm256_slli_epi32(high, 8));
    }
    BAIZE_TARGET static F widen_scales(const int8_t* at) {
        return to_float(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
    }
    BAIZE_TARGET static Odd odd_scales(const int8_t* at) {
        const I wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
        return _mm256_srai_epi32(_mm256_slli_epi32(wide, 31), 31);
    }
    BAIZE_TARGET static I start(const int32_t* at, Odd odd) {  // at[0] where the scale is even, else at[1]
        return _mm256_blendv_epi8(_mm256_set1_epi32(at[0]), _mm256_set1_epi32(at[1]), odd);
    }

    using B = __m256i;  // thirty-two bytes
    using P = __m256i;  // sixteen sums of two products
    static constexpr size_t bytes = 32;
    BAIZE_TARGET static B load_bytes(const void* at) {
        return _mm256_loadu_si256(static_cast<const __m256i*>(at));
    }
    BAIZE_TARGET static B all_bytes(int8_t value) { return _mm256_set1_epi8(value); }
    BAIZE_TARGET static P pairs(B codes, B weights) { return _mm256_maddubs_epi16(codes, weights); }
    BAIZE_TARGET static P add_pairs(P a, P b) { return _mm256_add_epi16(a, b); }
    BAIZE_TARGET static I total(P sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }
    BAIZE_TARGET static I plus(I a, I b) {
        a = _mm256_add_epi32(a, b);
        __asm__("" : "+x"(a));  // as in add_products
        return a;
    }
    // Whether add_pairs of these two, with codes up to 127, stays within 16 bits.
    BAIZE_TARGET static bool fit(B a, B b) {
        const B zero = _mm256_setzero_si256(), one = _mm256_set1_epi8(1);
        const P above = _mm256_add_epi16(_mm256_maddubs_epi16(_mm256_max_epi8(a, zero), one),
                                         _mm256_maddubs_epi16(_mm256_max_epi8(b, zero), one));
        const P below =
            _mm256_add_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(_mm256_min_epi8(a, zero)), one),
                             _mm256_maddubs_epi16(_mm256_abs_epi8(_mm256_min_epi8(b, zero)), one));
        const P most = _mm256_set1_epi16(32767 / 127);
        return _mm256_testz_si256(_mm256_cmpgt_epi16(_mm256_max_epi16(above, below), most),
                                  _mm256_set1_epi8(-1));
    }
    BAIZE_TARGET static void encode_bytes(const float* x, F inverse, int zero, uint8_t* codes) {
        const B both = _mm256_packs_epi16(rounded(x, inverse), rounded(x + 16, inverse));
        const B ordered = _mm256_permute4x64_epi64(both, 0xd8);
        store_shorts(reinterpret_cast<int16_t*>(codes),
                     _mm256_add_epi8(ordered, _mm256_set1_epi8(int8_t(zero))));
    }
};

using F = Vec::F;

}  // namespace

}  // namespace baize
