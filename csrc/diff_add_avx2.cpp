// AVX2 with F16C: 8 elements at a time.
#include "variants.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#define BAIZE_TARGET __attribute__((target("avx2,f16c")))

namespace {

struct Vec {
    static constexpr size_t width = 8;

    template <baize::Dtype D>
    BAIZE_TARGET static __m256 load(const uint8_t* at) {
        if constexpr (D == baize::Dtype::float32) {
            return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
        } else {
            const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
            if constexpr (D == baize::Dtype::float16) return _mm256_cvtph_ps(halves);
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
        }
    }

    template <baize::Dtype D>
    BAIZE_TARGET static void store(uint8_t* at, __m256 value) {
        if constexpr (D == baize::Dtype::float32) {
            _mm256_storeu_ps(reinterpret_cast<float*>(at), value);
        } else {
            __m128i halves;
            if constexpr (D == baize::Dtype::float16) {
                halves = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
            } else {
                const __m256i bits = _mm256_castps_si256(value);
                const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
                const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
                const __m256i high = _mm256_srli_epi32(rounded, 16);
                halves = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
            }
            _mm_storeu_si128(reinterpret_cast<__m128i*>(at), halves);
        }
    }

    BAIZE_TARGET static __m256 add(__m256 left, __m256 right) { return _mm256_add_ps(left, right); }
    BAIZE_TARGET static __m256 subtract(__m256 left, __m256 right) { return _mm256_sub_ps(left, right); }

    BAIZE_TARGET static __m256 canonical(__m256 value) {
        const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
        return _mm256_blendv_ps(value, nan, _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    }

    BAIZE_TARGET static void accumulate(double* lanes, __m256 value) {
        const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(value));
        const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1));
        _mm256_storeu_pd(lanes, _mm256_add_pd(_mm256_loadu_pd(lanes), low));
        _mm256_storeu_pd(lanes + 4, _mm256_add_pd(_mm256_loadu_pd(lanes + 4), high));
    }

    BAIZE_TARGET static bool any_at_least(__m256 value, uint32_t limit) {
        const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(value), _mm256_set1_epi32(0x7fffffff));
        return _mm256_movemask_epi8(_mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(int(limit - 1)))) != 0;
    }

    BAIZE_TARGET static void bits(uint32_t* out, __m256 value) {
        _mm256_storeu_ps(reinterpret_cast<float*>(out), value);
    }
};

}  // namespace

#include "diff_add_body.inc"

namespace baize {

Variant avx2_variant() {
    const auto why_not = []() -> const char* {
        // __builtin_cpu_supports knows f16c only since GCC 11. Its check of avx2 includes the operating system's support.
        unsigned eax, ebx, ecx = 0, edx;
        const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
        return f16c && __builtin_cpu_supports("avx2") ? nullptr : "this processor lacks AVX2 or F16C";
    };
    return {"avx2", why_not, chunk, widen};
}

}  // namespace baize

#else

namespace baize {

Variant avx2_variant() { return {"avx2", nullptr, nullptr, nullptr}; }

}  // namespace baize

#endif
