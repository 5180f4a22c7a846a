#include "quantize.h"

#include <algorithm>
#include <vector>

#include "float_state.h"

namespace baize {

bool quantize(const Kernels& kernels, Kind kind, const uint8_t* weight, const Matrix& matrix, uint8_t* values, uint8_t* scales) {
    static const QuantizeLoops scalar = scalar_quantize_loops(), avx2 = avx2_quantize_loops();
    const QuantizeLoops& loops = std::strcmp(kernels.name, "scalar") == 0 || !avx2.int4 ? scalar : avx2;
    const DefaultFloatState state;
    const size_t columns = matrix.columns, groups = matrix.groups(), row_bytes = columns * (kind == Kind::float32 ? 4 : 2);
    Buffer<float> buffer;
    buffer.grow(groups * kGroup);
    float* row = buffer.data();
    std::fill(row + columns, row + groups * kGroup, 0.0f);
    for (size_t n = 0; n < matrix.rows; ++n) {
        kernels.widen(kind, weight + n * row_bytes, columns, row);
        if (!loops.finite(row, columns)) return false;
        uint8_t* to = values + n * matrix.row_bytes();
        if (matrix.kind == Kind::int8) {
            float scale;
            loops.int8(row, columns, reinterpret_cast<int8_t*>(to), &scale);
            std::memcpy(scales + n * sizeof(float), &scale, sizeof scale);
        } else {
            loops.int4(row, groups, to, reinterpret_cast<uint16_t*>(scales) + n * groups);
        }
    }
    return true;
}

}  // namespace baize
