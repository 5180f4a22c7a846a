// AVX2 with FMA and F16C: 8 floats or 16 codes at a time.
#include "decoder_variants.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define BAIZE_TARGET __attribute__((target("avx2,fma,f16c")))

namespace {

constexpr size_t ROWS = 3, TOKENS = 4, SINGLE_ROWS = 4;

struct Vec {
    using F = __m256;
    static constexpr size_t width = 8;
    struct Codes {
        __m256i parts[4];
    };

    BAIZE_TARGET static F zero() { return _mm256_setzero_ps(); }
    BAIZE_TARGET static F all(float value) { return _mm256_set1_ps(value); }
    BAIZE_TARGET static F load(const float* at) { return _mm256_loadu_ps(at); }
    BAIZE_TARGET static void store(float* at, F value) { _mm256_storeu_ps(at, value); }
    BAIZE_TARGET static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    BAIZE_TARGET static F add(F a, F b) { return _mm256_add_ps(a, b); }
    BAIZE_TARGET static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    BAIZE_TARGET static F div(F a, F b) { return _mm256_div_ps(a, b); }
    BAIZE_TARGET static F greater(F a, F b) { return _mm256_max_ps(b, a); }  // the second, a, where one is NaN
    BAIZE_TARGET static F lesser(F a, F b) { return _mm256_min_ps(b, a); }
    BAIZE_TARGET static float sum(F value) {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    BAIZE_TARGET static F nearest(F value) { return _mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    BAIZE_TARGET static F times_power(F value, F power) {
        const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127)), 23);
        return _mm256_mul_ps(value, _mm256_castsi256_ps(exponent));
    }

    template <baize::Dtype D>
    BAIZE_TARGET static F load_as(const uint8_t* at) {
        if constexpr (D == baize::Dtype::float32) {
            return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
        } else {
            const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
            if constexpr (D == baize::Dtype::float16) return _mm256_cvtph_ps(halves);
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
        }
    }

    BAIZE_TARGET static Codes unpack8(const uint8_t* at) {
        const auto* bytes = reinterpret_cast<const __m128i*>(at);
        Codes codes;
        for (int n = 0; n < 4; ++n) codes.parts[n] = _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes + n));
        return codes;
    }
    BAIZE_TARGET static Codes unpack4(const uint8_t* at) {
        const auto* bytes = reinterpret_cast<const __m128i*>(at);
        const __m256i eight = _mm256_set1_epi16(8), mask = _mm256_set1_epi16(15);
        Codes codes;
        for (int n = 0; n < 2; ++n) {
            const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes + n));
            codes.parts[n] = _mm256_sub_epi16(_mm256_and_si256(wide, mask), eight);
            codes.parts[n + 2] = _mm256_sub_epi16(_mm256_srli_epi16(wide, 4), eight);
        }
        return codes;
    }
    BAIZE_TARGET static F dot(const Codes& codes, const int16_t* x) {
        __m256i total = _mm256_setzero_si256();
        for (int n = 0; n < 4; ++n) {
            const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 16 * n));
            total = _mm256_add_epi32(total, _mm256_madd_epi16(codes.parts[n], values));
        }
        return _mm256_cvtepi32_ps(total);
    }
};

}  // namespace

#include "decoder_body.inc"

namespace baize {

Kernels avx2_kernels() {
    const auto why_not = []() -> const char* {
        const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
        return has ? nullptr : "this processor lacks AVX2, FMA or F16C";
    };
    return {"avx2", why_not, panel_rows, product, quantise, rms_norm, silu_mul, attend, widen_row};
}

}  // namespace baize

#else

namespace baize {

Kernels avx2_kernels() { return {}; }

}  // namespace baize

#endif
