// The loops of quantize.h, over the vector type `Vec` of the file that includes this. Plain arithmetic, which
// the compiler vectorises; each operation is one of kernels/quantized.py, in float32.
//
// A row, widened to float32, stays in the L1 or L2 cache between its passes. Divisions bound them: one a
// value for int8, four for int4, whose groups try four scales each.
#pragma once

#include "csrc/quantize.h"

namespace baize {

namespace {

// Rounds to nearest, ties to even, for |x| < 2^22: the unit in the last place of 1.5 * 2^23 is 1.
BAIZE_TARGET inline int32_t nearest_int(float x) {
    return int32_t(bits_of(x + 0x1.8p23f)) - int32_t(bits_of(0x1.8p23f));
}

BAIZE_TARGET inline int32_t clamped(int32_t low, int32_t value, int32_t high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

// Ordered like |x|.
BAIZE_TARGET inline int32_t magnitude_bits(float x) { return int32_t(bits_of(x) & 0x7fffffffu); }

BAIZE_TARGET bool row_is_finite(const float* x, size_t count) {
    int32_t greatest = 0;
    for (size_t i = 0; i < count; ++i)
        greatest = magnitude_bits(x[i]) > greatest ? magnitude_bits(x[i]) : greatest;
    return greatest < 0x7f800000;
}

BAIZE_TARGET void row_to_int8(const float* x, size_t columns, int8_t* values, float* scale) {
    int32_t greatest = 0;
    for (size_t i = 0; i < columns; ++i)
        greatest = magnitude_bits(x[i]) > greatest ? magnitude_bits(x[i]) : greatest;
    const float wanted = float_of(uint32_t(greatest)) / 127.0f;
    const float one = wanted < __FLT_MIN__ ? __FLT_MIN__ : wanted;
    for (size_t i = 0; i < columns; ++i) values[i] = int8_t(clamped(-127, nearest_int(x[i] / one), 127));
    *scale = one;
}

// Sums kGroup terms by halves: 32 sums of two, 16 of four, ...
BAIZE_TARGET inline float sum_of_group(float* terms) {
    for (size_t i = 0; i < 32; ++i) terms[i] += terms[i + 32];
    for (size_t i = 0; i < 16; ++i) terms[i] += terms[i + 16];
    for (size_t i = 0; i < 8; ++i) terms[i] += terms[i + 8];
    for (size_t i = 0; i < 4; ++i) terms[i] += terms[i + 4];
    return (terms[0] + terms[2]) + (terms[1] + terms[3]);
}

BAIZE_TARGET void group_to_int4(const float* x, uint8_t* values, uint16_t* scale) {
    // CANDIDATES of kernels/quantized.py times the factor that maps the extreme to -8, divided in float64
    constexpr float factors[] = {float(1.0 / -8), float(0.95 / -8), float(0.9 / -8), float(0.85 / -8)};
    int32_t greatest = 0, first = kGroup;
    for (size_t i = 0; i < kGroup; ++i)
        greatest = magnitude_bits(x[i]) > greatest ? magnitude_bits(x[i]) : greatest;
    for (size_t i = 0; i < kGroup; ++i) {
        const int32_t here = magnitude_bits(x[i]) == greatest ? int32_t(i) : int32_t(kGroup);
        first = here < first ? here : first;
    }
    const float extreme = x[first];
    int32_t codes[4][kGroup];
    float least = __builtin_inff();
    int chosen = -1;
    uint16_t halves[4];
    for (int n = 0; n < 4; ++n) {
        halves[n] = Vec::to_half(extreme * factors[n]);
        const float wide = Vec::from_half(halves[n]), divisor = wide == 0.0f ? 1.0f : wide;
        float errors[kGroup];
        for (size_t i = 0; i < kGroup; ++i) {
            const int32_t code = clamped(-8, nearest_int(x[i] / divisor), 7);
            const float difference = float(code) * wide - x[i];
            codes[n][i] = code;
            errors[i] = difference * difference;
        }
        const float error = sum_of_group(errors);
        if (error < least) {
            least = error;
            chosen = n;
        }
    }
    if (chosen < 0) {  // every error overflows
        std::memset(values, 0x88, kGroup / 2);
        *scale = 0;
        return;
    }
    const int32_t* best = codes[chosen];
    for (size_t i = 0; i < kGroup / 2; ++i)
        values[i] = uint8_t((best[i] + 8) | (best[i + kGroup / 2] + 8) << 4);
    *scale = halves[chosen];
}

BAIZE_TARGET void row_to_int4(const float* x, size_t groups, uint8_t* values, uint16_t* scales) {
    for (size_t g = 0; g < groups; ++g) group_to_int4(x + g * kGroup, values + g * (kGroup / 2), scales + g);
}

constexpr QuantizeKernels kQuantize{.finite = row_is_finite, .int8 = row_to_int8, .int4 = row_to_int4};

}  // namespace

}  // namespace baize
