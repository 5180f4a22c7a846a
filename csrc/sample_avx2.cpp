// The loops of sample.h with AVX2.
#include <cstring>

#include "half.h"
#include "sample.h"

#if defined(__x86_64__)

#define BAIZE_TARGET __attribute__((target("avx2")))
#include "sample_loops.inc"

namespace baize {

SampleLoops avx2_sample_loops() { return {maxima, scale, weigh, draw}; }

}  // namespace baize

#else

namespace baize {

SampleLoops avx2_sample_loops() { return {}; }

}  // namespace baize

#endif
