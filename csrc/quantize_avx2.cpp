// The loops of quantize.h with AVX2 and F16C.
#include "quantize.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define BAIZE_TARGET __attribute__((target("avx2,f16c")))

namespace {

BAIZE_TARGET inline uint16_t to_half(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
BAIZE_TARGET inline float from_half(uint16_t half) { return _cvtsh_ss(half); }

}  // namespace

#include "quantize_loops.inc"

namespace baize {

QuantizeLoops avx2_quantize_loops() { return {finite, int8, int4}; }

}  // namespace baize

#else

namespace baize {

QuantizeLoops avx2_quantize_loops() { return {}; }

}  // namespace baize

#endif
