// The loops of quantize.h, over the vector type `Vec` of the file that includes this. Plain arithmetic, which
// the compiler vectorises; each operation is one of kernels/quantized.py, in float32.
//
// A row, widened to float32, stays in the L1 or L2 cache between its passes. Divisions bound int8, one a
// value. int4's blocks try 18 scales each, with 15 comparisons a value to find the nearest: these bound it.
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

// Sums the terms of a block by halves: 16 sums of two, 8 of four, ...
BAIZE_TARGET inline float sum_of_block(float* terms) {
    static_assert(kInt4Block == 32);
    for (size_t i = 0; i < 16; ++i) terms[i] += terms[i + 16];
    for (size_t i = 0; i < 8; ++i) terms[i] += terms[i + 8];
    for (size_t i = 0; i < 4; ++i) terms[i] += terms[i + 4];
    return (terms[0] + terms[2]) + (terms[1] + terms[3]);
}

// kInt4Values plus `shift`, and the middles between them.
struct Int4Table {
    float values[16], middles[15];
    constexpr explicit Int4Table(int shift) : values{}, middles{} {
        for (int u = 0; u < 16; ++u) values[u] = float(kInt4Values[u] + shift);
        for (int u = 0; u < 15; ++u) middles[u] = (values[u] + values[u + 1]) * 0.5f;
    }
};
constexpr Int4Table kInt4Tables[2] = {Int4Table(0), Int4Table(kInt4Shift)};

// values[i]: the table's value that is nearest to x[i] * factor, summed up from the steps below it.
BAIZE_TARGET inline void nearest_values(const Int4Table& table, const float* x, float factor, float* values) {
    for (size_t i = 0; i < kInt4Block; ++i) {
        const float wanted = x[i] * factor;
        float value = table.values[0];
        for (size_t u = 0; u < 15; ++u)
            value += wanted > table.middles[u] ? table.values[u + 1] - table.values[u] : 0.0f;
        values[i] = value;
    }
}

// The scale of a block, whose extreme is 1, that fits best with a table; `gain`: what it takes off the sum of
// squares.
BAIZE_TARGET inline float best_scale(const Int4Table& table, const float* x, float* gain) {
    // CANDIDATES of kernels/quantized.py: 127 over each, divided in float64, with both signs
    constexpr float factors[] = {-127.0f, 127.0f, float(-127 / 0.9), float(127 / 0.9), float(-127 / 0.8),
                                 float(127 / 0.8)};
    float scale = 0.0f;
    *gain = -1.0f;
    for (const float factor : factors) {
        float values[kInt4Block], along[kInt4Block], square[kInt4Block];
        nearest_values(table, x, factor, values);
        for (size_t i = 0; i < kInt4Block; ++i) along[i] = values[i] * x[i];
        for (size_t i = 0; i < kInt4Block; ++i) square[i] = values[i] * values[i];
        const float sum = sum_of_block(along), fitted = sum / sum_of_block(square), taken = fitted * sum;
        if (taken > *gain) {
            *gain = taken;
            scale = fitted;
        }
    }
    return scale;
}

// The greatest of a block in magnitude, the first if several are; 1 if all are zero.
BAIZE_TARGET inline float extreme_of(const float* x) {
    int32_t greatest = 0, first = kInt4Block;
    for (size_t i = 0; i < kInt4Block; ++i)
        greatest = magnitude_bits(x[i]) > greatest ? magnitude_bits(x[i]) : greatest;
    for (size_t i = 0; i < kInt4Block; ++i) {
        const int32_t here = magnitude_bits(x[i]) == greatest ? int32_t(i) : int32_t(kInt4Block);
        first = here < first ? here : first;
    }
    return x[first] == 0.0f ? 1.0f : x[first];
}

// Divides a row's blocks by their extremes, finds their scales with both tables, and returns the row's factor.
BAIZE_TARGET float fit_row(float* x, size_t blocks, Int4Fit* fits) {
    float top = 0.0f;
    for (size_t b = 0; b < blocks; ++b, x += kInt4Block) {
        Int4Fit& fit = fits[b];
        fit.extreme = extreme_of(x);
        for (size_t i = 0; i < kInt4Block; ++i) x[i] /= fit.extreme;
        float gains[2];
        for (int odd = 0; odd < 2; ++odd) fit.scales[odd] = best_scale(kInt4Tables[odd], x, gains + odd);
        const float scale = fit.scales[gains[1] > gains[0]] * fit.extreme;
        top = float_of(uint32_t(magnitude_bits(scale))) > top ? float_of(uint32_t(magnitude_bits(scale))) : top;
    }
    const float factor = top / 127.0f;
    return factor < __FLT_MIN__ ? __FLT_MIN__ : factor;
}

BAIZE_TARGET float row_to_int4(float* x, size_t blocks, Int4Fit* fits, uint8_t* codes, int8_t* scales) {
    const float factor = fit_row(x, blocks, fits);
    for (size_t b = 0; b < blocks; ++b, x += kInt4Block) {
        float least = __builtin_inff(), best_values[kInt4Block] = {};
        int best = 0;
        for (int odd = 0; odd < 2; ++odd) {
            const float wanted = (fits[b].scales[odd] * fits[b].extreme / factor - float(odd)) * 0.5f;
            const int nearest = nearest_int(wanted) * 2 + odd;
            for (const int step : {0, -2, 2}) {
                const int scale = clamped(-126 - odd, nearest + step, 126 + odd);
                const float unit = float(scale) * factor / fits[b].extreme;
                const float divisor = unit == 0.0f ? 1.0f : unit;
                float quotients[kInt4Block], values[kInt4Block], errors[kInt4Block];
                for (size_t i = 0; i < kInt4Block; ++i) quotients[i] = x[i] / divisor;
                nearest_values(kInt4Tables[odd], quotients, 1.0f, values);
                for (size_t i = 0; i < kInt4Block; ++i) {
                    const float difference = values[i] * unit - x[i];
                    errors[i] = difference * difference;
                }
                const float error = sum_of_block(errors);
                if (error < least) {
                    least = error;
                    best = scale;
                    std::memcpy(best_values, values, sizeof values);
                }
            }
        }
        scales[b] = int8_t(best);
        const Int4Table& table = kInt4Tables[best & 1];
        for (size_t i = 0; i < kInt4Block; ++i) {
            int code = 0;
            for (size_t u = 0; u < 15; ++u) code += best_values[i] > table.values[u];
            codes[b * kInt4Block + i] = uint8_t(code);
        }
    }
    return factor;
}

constexpr QuantizeKernels kQuantize{.finite = row_is_finite, .int8 = row_to_int8, .int4 = row_to_int4};

}  // namespace

}  // namespace baize
