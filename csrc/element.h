// Element types, elements in memory, and conversion of single ones to and from float32.
#pragma once

#include <cstddef>
#include <cstring>

#include "csrc/half.h"

namespace baize {

enum class Dtype { float32, float16, bfloat16 };

constexpr size_t itemsize(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

// Elements that are read, and those that are written; at any address.
struct Operand {
    const uint8_t* data;
    Dtype dtype;

    Operand from(size_t element) const { return {data + element * itemsize(dtype), dtype}; }
};

struct Target {
    uint8_t* data;
    Dtype dtype;

    Target from(size_t element) const { return {data + element * itemsize(dtype), dtype}; }
};

struct ElementKernels {
    // Exact, to any address; only a signalling float16 NaN changes: it becomes quiet.
    void (*widen)(Operand values, size_t count, void* floats);
    void (*narrow)(const float* values, size_t count, Target to);  // to nearest, ties to even
};

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
