// Quantisation of a matrix to int8 or int4: `quantize` of kernels/quantized.py, which defines the format and the bits.
#pragma once

#include "decoder.h"

namespace baize {

// Loops over a row, for one instruction set; all give the same bits. Columns that pad the last group must be zero.
struct QuantizeLoops {
    bool (*finite)(const float* x, size_t count);
    void (*int8)(const float* x, size_t columns, int8_t* values, float* scale);
    void (*int4)(const float* x, size_t groups, uint8_t* values, uint16_t* scales);
};

QuantizeLoops scalar_quantize_loops();
QuantizeLoops avx2_quantize_loops();  // functions are nullptr if the build's architecture lacks it

// Quantises rows [0, matrix.rows) of `weight`, of type `kind`, to the kind of `matrix`, int8 or int4, into `values` and
// `scales`. Returns false, with some rows written, if a value is not finite.
bool quantize(const Kernels& kernels, Kind kind, const uint8_t* weight, const Matrix& matrix, uint8_t* values, uint8_t* scales);

}  // namespace baize
