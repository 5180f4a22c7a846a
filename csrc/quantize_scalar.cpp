// The loops of quantize.h for any processor.
#include "quantize.h"

#define BAIZE_TARGET

namespace {

uint16_t to_half(float value) { return baize::float_to_half(value); }
float from_half(uint16_t half) { return baize::half_to_float(half); }

}  // namespace

#include "quantize_loops.inc"

namespace baize {

QuantizeLoops scalar_quantize_loops() { return {finite, int8, int4}; }

}  // namespace baize
