// The loops of sample.h for any processor.
#include <cstring>

#include "half.h"
#include "sample.h"

#define BAIZE_TARGET
#include "sample_loops.inc"

namespace baize {

SampleLoops scalar_sample_loops() { return {maxima, scale, weigh, draw}; }

}  // namespace baize
