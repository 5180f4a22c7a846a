// A section of a token's activations on its way to codes, over the vector type `Vec` of the file that
// includes this. Loads bound it: a few operations a value, which stays in the L1 cache (512 bytes for 128)
// for the codes.
#pragma once

#include <cstring>

#include "csrc/product.h"

namespace baize {

namespace {

// The greatest magnitude of `count` values of x, and whether all are finite. `from`: the values, padded with
// zeros to `size`.
template <size_t size>
struct Section {
    alignas(64) float padded[size];
    const float* from;
    float most;
    bool finite;
    BAIZE_TARGET Section(const float* x, size_t count) : from(x) {
        if (count < size) {
            std::memset(padded, 0, sizeof(padded));
            from = static_cast<float*>(std::memcpy(padded, x, count * sizeof(float)));
        }
        F greatest = Vec::zero(), bad = Vec::zero();
#pragma GCC unroll 4
        for (size_t k = 0; k < size; k += Vec::width) {
            const F value = Vec::load(from + k);
            greatest = Vec::greater(Vec::magnitude(value), greatest);
            bad = Vec::fma(value, Vec::zero(), bad);  // NaN if one is not finite
        }
        most = Vec::greatest(greatest);
        finite = Vec::sum(bad) == 0.0f;
    }
    // The factor that turns values into codes from -levels to levels, and the one that turns them back: 0 and
    // NaN if a value is not finite, so that the results are not finite either.
    float inverse(float levels) const { return finite && most > 1e-30f ? levels / most : 0.0f; }
    float scale(float levels) const { return finite ? most / levels : float_of(0x7fc00000u); }
};

}  // namespace

}  // namespace baize
