// int8 and int4 codes of a matrix: `quantize` of kernels/quantized.py, which defines format and bits.
#pragma once

#include "decoder.h"

namespace baize {

// A row, by instruction set; the same bits from each. Columns that fill up a group are zero.
struct QuantizeLoops {
    bool (*finite)(const float* x, size_t count);
    void (*int8)(const float* x, size_t columns, int8_t* values, float* scale);
    void (*int4)(const float* x, size_t groups, uint8_t* values, uint16_t* scales);
};

QuantizeLoops scalar_quantize_loops();
QuantizeLoops avx2_quantize_loops();  // no functions where the build's architecture lacks it

// Rows [0, matrix.rows) of `weight`, of type `kind`, into the memory that `matrix`, int8 or int4, names. False, with some rows
// written, where a value is not finite.
bool quantize(const Kernels& kernels, Kind kind, const uint8_t* weight, const Matrix& matrix, uint8_t* values, uint8_t* scales);

}  // namespace baize
