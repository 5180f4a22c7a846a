#include "csrc/quantize.h"

#include <algorithm>

#include "csrc/buffer.h"
#include "csrc/float_state.h"
#include "csrc/implementation.h"

namespace baize {

bool quantize(const Implementation& by, Operand weight, const Matrix& matrix, uint8_t* values,
              uint8_t* scales) {
    const DefaultFloatState state;
    const size_t columns = matrix.columns, groups = (matrix.columns + kGroup - 1) / kGroup;
    Buffer<float> buffer;
    buffer.grow(groups * kGroup);
    float* row = buffer.data();
    std::fill(row + columns, row + groups * kGroup, 0.0f);
    for (size_t n = 0; n < matrix.rows; ++n) {
        by.elements.widen(weight.from(n * columns), columns, row);
        if (!by.quantize.finite(row, columns)) return false;
        uint8_t* to = values + n * matrix.row_bytes();
        if (matrix.kind == Kind::int8) {
            float scale;
            by.quantize.int8(row, columns, reinterpret_cast<int8_t*>(to), &scale);
            std::memcpy(scales + n * sizeof(float), &scale, sizeof scale);
        } else {
            by.quantize.int4(row, groups, to, reinterpret_cast<uint16_t*>(scales) + n * groups);
        }
    }
    return true;
}

}  // namespace baize
