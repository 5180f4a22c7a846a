// Quantisation of a matrix to int8 or int4: `quantize` of kernels/quantized.py, which defines the format and
// the bits.
#pragma once

#include "csrc/matrix.h"

namespace baize {

struct Implementation;

// What a row's quantiser keeps of a block: its extreme, its scale over that, and its table.
struct Int4Fit {
    float extreme, scale;
    bool odd;
};

// Loops over a row; columns that pad the last block must be zero.
struct QuantizeKernels {
    bool (*finite)(const float* x, size_t count);
    void (*int8)(const float* x, size_t columns, int8_t* values, float* scale);
    // `codes`: one a byte, in order; `scales`: one a block. Returns the row's factor.
    float (*int4)(const float* x, size_t blocks, Int4Fit* fits, uint8_t* codes, int8_t* scales);
};

// Quantises rows [0, matrix.rows) of `weight` into the memory of `matrix`, int8 or int4, which must be
// writable. Returns false, with some rows written, if a value is not finite.
bool quantize(const Implementation& by, Operand weight, const Matrix& matrix);

}  // namespace baize
