#include "csrc/quantize.h"

#include <algorithm>

#include "csrc/buffer.h"
#include "csrc/float_state.h"
#include "csrc/implementation.h"

namespace baize {

namespace {

// Puts a row's codes and scales at its place in the panels of `matrix`.
void put_int4(const Matrix& matrix, size_t row, const uint8_t* codes, const int8_t* scales) {
    const size_t blocks = matrix.int4_blocks(), place = matrix.first + row, lane = place % kInt4Panel;
    auto* values = const_cast<uint8_t*>(matrix.values);
    auto* of_blocks = const_cast<uint8_t*>(matrix.scales);
    for (size_t b = 0; b < blocks; ++b, codes += kInt4Block) {
        const size_t block = place / kInt4Panel * blocks + b;
        for (size_t k = 0; k < kInt4Block / 2; ++k)
            values[block * kInt4BlockBytes + k / 4 * 4 * kInt4Panel + lane * 4 + k % 4] =
                uint8_t(codes[k] | codes[kInt4Block / 2 + k] << 4);
        of_blocks[block * kInt4Panel + lane] = uint8_t(scales[b]);
    }
}

}  // namespace

bool quantize(const Implementation& by, Operand weight, const Matrix& matrix) {
    const DefaultFloatState state;
    const size_t columns = matrix.columns, blocks = matrix.int4_blocks();
    Buffer<float> buffer;
    buffer.grow(blocks * kInt4Block);
    Buffer<Int4Fit> fits;
    Buffer<uint8_t> codes;
    Buffer<int8_t> scales;
    if (matrix.kind == Kind::int4) {
        fits.grow(blocks);
        codes.grow(blocks * kInt4Block);
        scales.grow(blocks);
    }
    float* row = buffer.data();
    for (size_t n = 0; n < matrix.rows; ++n) {
        by.elements.widen(weight.from(n * columns), columns, row);
        if (!by.quantize.finite(row, columns)) return false;
        if (matrix.kind == Kind::int8) {
            float scale;
            auto* to = const_cast<uint8_t*>(matrix.values) + n * columns;
            by.quantize.int8(row, columns, reinterpret_cast<int8_t*>(to), &scale);
            std::memcpy(const_cast<uint8_t*>(matrix.scales) + n * sizeof(float), &scale, sizeof scale);
        } else {
            std::fill(row + columns, row + blocks * kInt4Block, 0.0f);
            const_cast<float*>(matrix.factors)[n] =
                by.quantize.int4(row, blocks, fits.data(), codes.data(), scales.data());
            put_int4(matrix, n, codes.data(), scales.data());
        }
    }
    return true;
}

}  // namespace baize
