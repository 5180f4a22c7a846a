// AVX-512 (F, BW, DQ, VL, VNNI): 16 floats or 32 codes at a time.
#include "decoder_variants.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC bug 105593: its own AVX-512 headers warn
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#define BAIZE_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))

namespace {

constexpr size_t SINGLE_ROWS = 4, PANEL_ROWS = 48, ROWS = 4, TOKENS = 6, CODE_ROWS = 4, CODE_TOKENS = 4, BYTE_ROWS = 4, BYTE_TOKENS = 4;

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
    BAIZE_TARGET static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    BAIZE_TARGET static F div(F a, F b) { return _mm512_div_ps(a, b); }
    BAIZE_TARGET static F greater(F a, F b) { return _mm512_max_ps(b, a); }  // the second, a, where one is NaN
    BAIZE_TARGET static F lesser(F a, F b) { return _mm512_min_ps(b, a); }
    BAIZE_TARGET static float sum(F value) { return _mm512_reduce_add_ps(value); }
    BAIZE_TARGET static F nearest(F value) { return _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    BAIZE_TARGET static F times_power(F value, F power) { return _mm512_scalef_ps(value, power); }

    template <baize::Dtype D>
    BAIZE_TARGET static F load_as(const uint8_t* at) {
        if constexpr (D == baize::Dtype::float32) {
            return _mm512_loadu_ps(at);
        } else {
            const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
            if constexpr (D == baize::Dtype::float16) return _mm512_cvtph_ps(halves);
            return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
        }
    }

    template <baize::Dtype D>
    BAIZE_TARGET static void store_as(uint8_t* at, F value) {
        if constexpr (D == baize::Dtype::float32) {
            _mm512_storeu_ps(at, value);
        } else if constexpr (D == baize::Dtype::float16) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
        } else {
            for (size_t n = 0; n < width; ++n) baize::store_one<D>(at + n * 2, reinterpret_cast<const float*>(&value)[n]);
        }
    }
    BAIZE_TARGET static F magnitude(F value) { return _mm512_abs_ps(value); }
    BAIZE_TARGET static float greatest(F value) { return _mm512_reduce_max_ps(value); }
    BAIZE_TARGET static F sums(const F* v) {
        alignas(64) float each[width];
        for (size_t n = 0; n < width; ++n) each[n] = sum(v[n]);
        return load(each);
    }

    BAIZE_TARGET static void transpose(F (&rows)[width]) {  // rows[k][n] = rows[n][k] before
        alignas(64) float from[width][width], to[width];
        for (size_t n = 0; n < width; ++n) store(from[n], rows[n]);
        for (size_t k = 0; k < width; ++k) {
            for (size_t n = 0; n < width; ++n) to[n] = from[n][k];
            rows[k] = load(to);
        }
    }

    BAIZE_TARGET static I no_total() { return _mm512_setzero_si512(); }
    BAIZE_TARGET static S load_shorts(const int16_t* at) { return _mm512_loadu_si512(at); }
    BAIZE_TARGET static void store_shorts(int16_t* at, S value) { _mm512_storeu_si512(at, value); }
    BAIZE_TARGET static S load_codes(const uint8_t* at) {
        return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    }
    BAIZE_TARGET static I products(S a, S b) { return _mm512_dpwssd_epi32(no_total(), a, b); }
    BAIZE_TARGET static I add_products(I total, S a, S b) { return _mm512_dpwssd_epi32(total, a, b); }
    BAIZE_TARGET static I subtract(I a, I b) { return _mm512_sub_epi32(a, b); }
    BAIZE_TARGET static I load_total(const int32_t* at) { return _mm512_loadu_si512(at); }
    BAIZE_TARGET static void store_total(int32_t* at, I value) { _mm512_storeu_si512(at, value); }
    BAIZE_TARGET static F to_float(I total) { return _mm512_cvtepi32_ps(total); }

    // A group of int4: columns 0 to 31, then 32 to 63.
    BAIZE_TARGET static S stored(const uint8_t* group, size_t part) {  // with 8 added
        const S wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(group)));
        return part == 0 ? _mm512_and_si512(wide, _mm512_set1_epi16(15)) : _mm512_srli_epi16(wide, 4);
    }
    BAIZE_TARGET static S nibbles(const uint8_t* group, size_t part) {
        return _mm512_sub_epi16(stored(group, part), _mm512_set1_epi16(8));
    }
    BAIZE_TARGET static I dot4(const uint8_t* group, const S* values) {  // of the codes with 8 added, as they are stored
        return add_products(add_products(no_total(), stored(group, 0), values[0]), stored(group, 1), values[1]);
    }
    BAIZE_TARGET static I eight_times(const int16_t* x) {
        const S eight = _mm512_set1_epi16(8);
        return add_products(add_products(no_total(), load_shorts(x + 0), eight), load_shorts(x + 32), eight);
    }
    BAIZE_TARGET static void widen4(const uint8_t* group, int16_t* to) {
        for (size_t n = 0; n < 2; ++n) store_shorts(to + n * 32, nibbles(group, n));
    }
    // A section of x in the order of the matrix's codes.
    template <baize::Kind K>
    BAIZE_TARGET static void encode(const float* x, F inverse, int16_t* codes) {
        for (size_t k = 0; k < baize::section_of(K); k += 16) {
            const __m256i some = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(load(x + k), inverse)));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + k), some);
        }
    }

    using B = __m512i;  // sixty-four bytes
    using P = __m512i;  // sixteen sums of four products
    static constexpr size_t bytes = 64;
    BAIZE_TARGET static B load_bytes(const void* at) { return _mm512_loadu_si512(at); }
    BAIZE_TARGET static B all_bytes(int8_t value) { return _mm512_set1_epi8(value); }
    BAIZE_TARGET static P pairs(B codes, B weights) { return _mm512_dpbusd_epi32(no_total(), codes, weights); }
    BAIZE_TARGET static P add_pairs(P a, P b) { return _mm512_add_epi32(a, b); }
    BAIZE_TARGET static I total(P sums) { return sums; }
    BAIZE_TARGET static I plus(I a, I b) { return _mm512_add_epi32(a, b); }
    BAIZE_TARGET static bool fit(B, B) { return true; }
    BAIZE_TARGET static void bytes4(const uint8_t* group, int8_t* to) {  // a group of int4, columns in order
        const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group)), mask = _mm256_set1_epi8(15);
        const __m256i low = _mm256_and_si256(packed, mask), high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
        _mm512_storeu_si512(to, _mm512_sub_epi8(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), _mm512_set1_epi8(8)));
    }
    BAIZE_TARGET static void encode_bytes(const float* x, F inverse, int zero, uint8_t* codes) {
        for (size_t k = 0; k < bytes; k += width) {
            const __m512i code = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(load(x + k), inverse)), _mm512_set1_epi32(zero));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + k), _mm512_cvtepi32_epi8(code));
        }
    }
};

}  // namespace

#include "decoder_product.inc"
// the products first: attention uses their vectors
#include "decoder_attention.inc"
#include "decoder_elementwise.inc"

namespace baize {

Kernels avx512_kernels() {
    const auto why_not = []() -> const char* {
        const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
        return has ? nullptr : "this processor lacks AVX-512 F, BW, DQ, VL or VNNI";
    };
    return {"avx512", why_not, task_rows, product_scratch, product, prepare, rms_norm, silu_mul, attend, attention_scratch, merge, widen_row, narrow_row};
}

}  // namespace baize

#else

namespace baize {

Kernels avx512_kernels() { return {}; }

}  // namespace baize

#endif
