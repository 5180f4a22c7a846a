// Element types, and conversion of single elements to and from float32.
#pragma once

#include <cstddef>
#include <cstring>

#include "half.h"

namespace baize {

enum class Dtype { float32, float16, bfloat16 };

constexpr size_t itemsize(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

template <Dtype D>
inline float load_one(const uint8_t* at) {
    if constexpr (D == Dtype::float32) {
        float value;
        std::memcpy(&value, at, 4);
        return value;
    } else {
        uint16_t half;
        std::memcpy(&half, at, 2);
        return D == Dtype::float16 ? half_to_float(half) : bfloat_to_float(half);
    }
}

template <Dtype D>
inline void store_one(uint8_t* at, float value) {
    if constexpr (D == Dtype::float32) {
        std::memcpy(at, &value, 4);
    } else {
        const uint16_t half = D == Dtype::float16 ? float_to_half(value) : float_to_bfloat(value);
        std::memcpy(at, &half, 2);
    }
}

}  // namespace baize
