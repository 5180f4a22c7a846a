// e^x over the vector type `Vec` of the file that includes this.
#pragma once

#include <cstddef>
#include <initializer_list>

namespace baize {

namespace {

// e^x within two units in the last place from -87 to 88; x beyond is clamped. 2^n times a Taylor polynomial
// of the remainder, which is at most ln(2) / 2.
BAIZE_TARGET inline F exponential(F x) {
    const F low = Vec::greater(x, Vec::all(-87.0f)), clamped = Vec::lesser(low, Vec::all(88.0f));
    const F whole = Vec::nearest(Vec::mul(clamped, Vec::all(1.44269504f)));
    const F rest =
        Vec::fma(whole, Vec::all(1.42860677e-6f), Vec::fma(whole, Vec::all(-0.693148613f), clamped));
    F sum = Vec::all(1.0f / 5040);
    for (float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        sum = Vec::fma(sum, rest, Vec::all(coefficient));
    return Vec::times_power(sum, whole);
}

BAIZE_TARGET inline float exponential(float x) {
    alignas(64) float lanes[Vec::width];
    Vec::store(lanes, exponential(Vec::all(x)));
    return lanes[0];
}

}  // namespace

}  // namespace baize
