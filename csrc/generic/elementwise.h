// The ops between products, over the vector type `Vec` of the file that includes this. They are a few
// operations a value, where a product has thousands: rms_norm reads its row from memory once, and again from
// the L1 cache; silu_mul reads what the products of its task have just left in the cache.
#pragma once

#include <cstring>

#include "csrc/generic/exponential.h"

namespace baize {

namespace {

BAIZE_TARGET void rms_norm(const float* x, const float* weight, float eps, size_t size, float* out) {
    F squares = Vec::zero();
    size_t n = 0;
    for (; n + Vec::width <= size; n += Vec::width) {
        const F value = Vec::load(x + n);
        squares = Vec::fma(value, value, squares);
    }
    float total = Vec::sum(squares);
    for (; n < size; ++n) total += x[n] * x[n];
    const float inverse = 1.0f / __builtin_sqrtf(total / float(size) + eps);
    for (n = 0; n < size; ++n) out[n] = x[n] * inverse * weight[n];
}

BAIZE_TARGET inline F silu_mul_of(F gate, F up) {
    const F minus = Vec::mul(gate, Vec::all(-1.0f));
    return Vec::mul(Vec::div(gate, Vec::add(Vec::all(1.0f), exponential(minus))), up);
}

BAIZE_TARGET void silu_mul(const float* gate, const float* up, size_t size, float* out) {
    size_t n = 0;
    for (; n + Vec::width <= size; n += Vec::width)
        Vec::store(out + n, silu_mul_of(Vec::load(gate + n), Vec::load(up + n)));
    if (n == size) return;
    alignas(64) float g[Vec::width] = {}, u[Vec::width] = {}, o[Vec::width];
    std::memcpy(g, gate + n, (size - n) * sizeof(float));
    std::memcpy(u, up + n, (size - n) * sizeof(float));
    Vec::store(o, silu_mul_of(Vec::load(g), Vec::load(u)));
    std::memcpy(out + n, o, (size - n) * sizeof(float));
}

}  // namespace

}  // namespace baize
