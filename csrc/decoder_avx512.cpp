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

constexpr size_t ROWS = 6, TOKENS = 4, SINGLE_ROWS = 8;

struct Vec {
    using F = __m512;
    static constexpr size_t width = 16;
    struct Codes {
        __m512i low, high;
    };

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

    BAIZE_TARGET static Codes unpack8(const uint8_t* at) {
        const auto* bytes = reinterpret_cast<const __m256i*>(at);
        return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(bytes)), _mm512_cvtepi8_epi16(_mm256_loadu_si256(bytes + 1))};
    }
    BAIZE_TARGET static Codes unpack4(const uint8_t* at) {
        const __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
        const __m512i eight = _mm512_set1_epi16(8), low = _mm512_and_si512(wide, _mm512_set1_epi16(15));
        return {_mm512_sub_epi16(low, eight), _mm512_sub_epi16(_mm512_srli_epi16(wide, 4), eight)};
    }
    BAIZE_TARGET static F dot(const Codes& codes, const int16_t* x) {
        const __m512i first = _mm512_dpwssd_epi32(_mm512_setzero_si512(), codes.low, _mm512_loadu_si512(x));
        return _mm512_cvtepi32_ps(_mm512_dpwssd_epi32(first, codes.high, _mm512_loadu_si512(x + 32)));
    }
};

}  // namespace

#include "decoder_body.inc"

namespace baize {

Kernels avx512_kernels() {
    const auto why_not = []() -> const char* {
        const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
        return has ? nullptr : "this processor lacks AVX-512 F, BW, DQ, VL or VNNI";
    };
    return {"avx512", why_not, panel_rows, product, quantise, rms_norm, silu_mul, attend, widen_row};
}

}  // namespace baize

#else

namespace baize {

Kernels avx512_kernels() { return {}; }

}  // namespace baize

#endif
