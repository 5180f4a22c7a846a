// Weights: the kinds of their elements, and a matrix by address, laid out as kernels/quantized.py says.
#pragma once

#include "csrc/element.h"

namespace baize {

enum class Kind { float32, float16, bfloat16, int8, int4 };

// int4: kInt4Block columns of a row share a scale, and kInt4Panel rows lie together, whose block takes
// kInt4BlockBytes. A code is one of kInt4Values, plus kInt4Shift where the scale is odd.
constexpr size_t kInt4Block = 32, kInt4Panel = 16, kInt4BlockBytes = kInt4Panel * kInt4Block / 2;
alignas(16) constexpr int8_t kInt4Values[16] = {-127, -103, -83, -64, -49, -35, -22, -10,
                                                1,    13,   25,  38,  53,  70,  90,  112};
constexpr int kInt4Shift = 8;

// The element type of a kind that is not quantised.
constexpr Dtype dtype_of(Kind kind) {
    return kind == Kind::float16 ? Dtype::float16 : kind == Kind::bfloat16 ? Dtype::bfloat16 : Dtype::float32;
}

// Columns of an integer activation that share a scale where it meets int8: 2 operations on top of 16.
constexpr size_t kSection = 128;

// A matrix (rows, columns). `scales`: for int8 a float32 per row, for int4 an int8 per block. `factors`: for
// int4 one per row, as `scales` of a row are multiples of it. `first`: for int4 the place of row 0 in its
// panel.
struct Matrix {
    Kind kind;
    const uint8_t* values;
    const uint8_t* scales;
    size_t rows, columns;
    const float* factors = nullptr;
    size_t first = 0;

    size_t int4_blocks() const { return (columns + kInt4Block - 1) / kInt4Block; }

    bool quantised() const { return kind == Kind::int8 || kind == Kind::int4; }
    size_t bytes_of(size_t count) const {  // bytes of `count` columns of a row; int4: of whole blocks
        switch (kind) {
            case Kind::float32: return count * 4;
            case Kind::int8: return count;
            case Kind::int4: return (count + kInt4Block - 1) / kInt4Block * (kInt4Block / 2);
            default: return count * 2;
        }
    }
    size_t row_bytes() const { return bytes_of(columns); }
    Matrix part(size_t begin, size_t end) const {  // rows [begin, end)
        if (kind == Kind::int4) {
            const size_t place = first + begin, blocks = place / kInt4Panel * int4_blocks();
            return {kind,
                    values + blocks * kInt4BlockBytes,
                    scales + blocks * kInt4Panel,
                    end - begin,
                    columns,
                    factors + begin,
                    place % kInt4Panel};
        }
        const size_t scales_of_row = kind == Kind::int8 ? 4 : 0;
        return {kind, values + begin * row_bytes(), scales + begin * scales_of_row, end - begin, columns};
    }
    float row_scale(size_t row) const { return load_one<Dtype::float32>(scales + row * sizeof(float)); }
};

}  // namespace baize
