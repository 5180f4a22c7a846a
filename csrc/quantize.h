// Quantisation of a matrix to int8 or int4: `quantize` of kernels/quantized.py, which defines the format and
// the bits.
#pragma once

#include "csrc/matrix.h"

namespace baize {

constexpr size_t kGroup = 64;

struct Implementation;

// Loops over a row; columns that pad the last group must be zero.
struct QuantizeKernels {
    bool (*finite)(const float* x, size_t count);
    void (*int8)(const float* x, size_t columns, int8_t* values, float* scale);
    void (*int4)(const float* x, size_t groups, uint8_t* values, uint16_t* scales);
};

// Quantises rows [0, matrix.rows) of `weight` to the kind of `matrix`, int8 or int4, into `values` and
// `scales`. Returns false, with some rows written, if a value is not finite.
bool quantize(const Implementation& by, Operand weight, const Matrix& matrix, uint8_t* values,
              uint8_t* scales);

}  // namespace baize
