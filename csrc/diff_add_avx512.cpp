// AVX-512 (F, BW, DQ, VL): 16 elements at a time.
#include "variants.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC bug 105593: its own AVX-512 headers warn
#endif
#define BAIZE_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")))

namespace {

struct Vec {
    static constexpr size_t width = 16;

    template <baize::Dtype D>
    BAIZE_TARGET static __m512 load(const uint8_t* at) {
        if constexpr (D == baize::Dtype::float32) {
            return _mm512_loadu_ps(at);
        } else {
            const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
            if constexpr (D == baize::Dtype::float16) return _mm512_cvtph_ps(halves);
            return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
        }
    }

    template <baize::Dtype D>
    BAIZE_TARGET static void store(uint8_t* at, __m512 value) {
        if constexpr (D == baize::Dtype::float32) {
            _mm512_storeu_ps(at, value);
        } else {
            __m256i halves;
            if constexpr (D == baize::Dtype::float16) {
                halves = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
            } else {  // not vcvtneps2bf16, which flushes denormals
                const __m512i bits = _mm512_castps_si512(value);
                const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
                const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
                halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
            }
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), halves);
        }
    }

    BAIZE_TARGET static __m512 add(__m512 left, __m512 right) { return _mm512_add_ps(left, right); }
    BAIZE_TARGET static __m512 subtract(__m512 left, __m512 right) { return _mm512_sub_ps(left, right); }

    BAIZE_TARGET static __m512 canonical(__m512 value) {
        const __m512 nan = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000));
        return _mm512_mask_mov_ps(value, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), nan);
    }

    BAIZE_TARGET static void accumulate(double* lanes, __m512 value) {
        const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(value));
        const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1));
        _mm512_storeu_pd(lanes, _mm512_add_pd(_mm512_loadu_pd(lanes), low));
        _mm512_storeu_pd(lanes + 8, _mm512_add_pd(_mm512_loadu_pd(lanes + 8), high));
    }

    BAIZE_TARGET static bool any_at_least(__m512 value, uint32_t limit) {
        const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(0x7fffffff));
        return _mm512_cmpge_epu32_mask(magnitude, _mm512_set1_epi32(int(limit))) != 0;
    }

    BAIZE_TARGET static void bits(uint32_t* out, __m512 value) { _mm512_storeu_ps(out, value); }
};

}  // namespace

#include "diff_add_body.inc"

namespace baize {

Variant avx512_variant() {
    const auto why_not = []() -> const char* {
        const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        return has ? nullptr : "this processor lacks AVX-512 F, BW, DQ or VL";
    };
    return {"avx512", why_not, chunk, widen};
}

}  // namespace baize

#else

namespace baize {

Variant avx512_variant() { return {"avx512", nullptr, nullptr, nullptr}; }

}  // namespace baize

#endif
