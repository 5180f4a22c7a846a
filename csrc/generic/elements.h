// Conversion of rows of elements, over the vector type `Vec` of the file that includes this. Loads and stores
// bound it.
#pragma once

#include "csrc/element.h"

namespace baize {

namespace {

// Writes float32 values to any address.
template <Dtype D>
BAIZE_TARGET void widen_as(const uint8_t* from, size_t count, void* floats) {
    uint8_t* to = static_cast<uint8_t*>(floats);
    size_t n = 0;
    for (; n + Vec::width <= count; n += Vec::width)
        Vec::template store_as<Dtype::float32>(to + n * sizeof(float),
                                               Vec::template load_as<D>(from + n * itemsize(D)));
    for (; n < count; ++n)
        store_one<Dtype::float32>(to + n * sizeof(float), load_one<D>(from + n * itemsize(D)));
}

BAIZE_TARGET void widen(Operand values, size_t count, void* floats) {
    switch (values.dtype) {
        case Dtype::float32: return widen_as<Dtype::float32>(values.data, count, floats);
        case Dtype::float16: return widen_as<Dtype::float16>(values.data, count, floats);
        default: return widen_as<Dtype::bfloat16>(values.data, count, floats);
    }
}

template <Dtype D>
BAIZE_TARGET void narrow_as(const float* from, size_t count, uint8_t* to) {
    size_t n = 0;
    for (; n + Vec::width <= count; n += Vec::width) {
        const F value = Vec::load(from + n);
        Vec::template store_as<D>(to + n * itemsize(D), D == Dtype::float32 ? value : Vec::canonical(value));
    }
    for (; n < count; ++n) store_one<D>(to + n * itemsize(D), from[n]);
}

BAIZE_TARGET void narrow(const float* values, size_t count, Target to) {
    switch (to.dtype) {
        case Dtype::float32: return narrow_as<Dtype::float32>(values, count, to.data);
        case Dtype::float16: return narrow_as<Dtype::float16>(values, count, to.data);
        default: return narrow_as<Dtype::bfloat16>(values, count, to.data);
    }
}

constexpr ElementKernels kElements{.widen = widen, .narrow = narrow};

}  // namespace

}  // namespace baize
