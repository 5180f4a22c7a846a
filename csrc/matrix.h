// Weights: the kinds of their elements, and a matrix by address, laid out as kernels/quantized.py says.
#pragma once

#include "csrc/element.h"

namespace baize {

constexpr size_t kGroup = 64;  // columns that share an int4 scale: GROUP of kernels/quantized.py

enum class Kind { float32, float16, bfloat16, int8, int4 };

// The element type of a kind that is not quantised.
constexpr Dtype dtype_of(Kind kind) {
    return kind == Kind::float16 ? Dtype::float16 : kind == Kind::bfloat16 ? Dtype::bfloat16 : Dtype::float32;
}

// Columns of an integer activation that share a scale. With int8 weights a section costs 2 operations on top
// of 16.
constexpr size_t section_of(Kind kind) { return kind == Kind::int8 ? 2 * kGroup : kGroup; }

// A matrix (rows, columns). `scales`: for int8 a float32 per row, for int4 a float16 per group.
struct Matrix {
    Kind kind;
    const uint8_t* values;
    const uint8_t* scales;
    size_t rows, columns;

    size_t groups() const { return (columns + kGroup - 1) / kGroup; }
    bool quantised() const { return kind == Kind::int8 || kind == Kind::int4; }
    size_t bytes_of(size_t count) const {  // bytes of `count` columns; int4: rounded up to whole groups
        switch (kind) {
            case Kind::float32: return count * 4;
            case Kind::int8: return count;
            case Kind::int4: return (count + kGroup - 1) / kGroup * (kGroup / 2);
            default: return count * 2;
        }
    }
    size_t row_bytes() const { return bytes_of(columns); }
    Matrix part(size_t begin, size_t end) const {  // rows [begin, end)
        const size_t scales_of_row = kind == Kind::int8 ? 4 : kind == Kind::int4 ? groups() * 2 : 0;
        return {kind, values + begin * row_bytes(), scales + begin * scales_of_row, end - begin, columns};
    }
    float row_scale(size_t row) const { return load_one<Dtype::float32>(scales + row * sizeof(float)); }
    // The float16 scales of an int4 row from the group of column `column` on.
    const uint8_t* group_scales(size_t row, size_t column) const {
        return scales + (row * groups() + column / kGroup) * 2;
    }
};

}  // namespace baize
