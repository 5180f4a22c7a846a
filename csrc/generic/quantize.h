// The loops of quantize.h, over the vector type `Vec` of the file that includes this. Plain arithmetic, which
// the compiler vectorises; each operation is one of kernels/quantized.py, in float32.
//
// A row, widened to float32, stays in the L1 or L2 cache between its passes. Divisions bound int8, one a
// value. int4's blocks try 7 scales each, with 15 comparisons a value, in bytes, to find the nearest.
#pragma once

#include <initializer_list>

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

// The steps of the values of int4, and the last whole numbers that are nearer to the lower of two.
struct Int4Steps {
    int8_t first, middles[15], steps[15];
    constexpr explicit Int4Steps(int shift) : first(int8_t(kInt4Values[0] + shift)), middles{}, steps{} {
        for (int u = 0; u < 15; ++u) {
            const int sum = kInt4Values[u] + kInt4Values[u + 1] + 2 * shift;
            middles[u] = int8_t((sum - (sum < 0 && sum % 2 ? 1 : 0)) / 2);  // rounded down
            steps[u] = int8_t(kInt4Values[u + 1] - kInt4Values[u]);
        }
    }
};
constexpr Int4Steps kInt4Steps[2] = {Int4Steps(0), Int4Steps(kInt4Shift)};

// GCC does not make vectors of nested loops itself.
typedef int8_t Bytes __attribute__((vector_size(kInt4Block)));
typedef int16_t Shorts __attribute__((vector_size(2 * kInt4Block)));

// A block whose extreme is 127: its values, and the whole numbers next to them.
struct Int4Block {
    float x[kInt4Block];
    Bytes rounded;
};

// The values of a block's codes, and their sums with the block and with themselves.
struct Int4Codes {
    Bytes values;
    float along, square;
};

BAIZE_TARGET inline float sum_of_products(const Bytes& a, const Bytes& b) {
    const Shorts wide_a = __builtin_convertvector(a, Shorts), wide_b = __builtin_convertvector(b, Shorts);
    int16_t first[kInt4Block], second[kInt4Block];
    std::memcpy(first, &wide_a, sizeof first);
    std::memcpy(second, &wide_b, sizeof second);
    int32_t sum = 0;  // GCC makes a dot product of 16-bit numbers of it
    for (size_t i = 0; i < kInt4Block; ++i) sum += int32_t(first[i]) * int32_t(second[i]);
    return float(sum);
}

// The codes of whole numbers.
BAIZE_TARGET inline void codes_of(const Int4Steps& table, const Bytes& wanted, const Int4Block& block,
                                  Int4Codes& out) {
    out.values = Bytes{} + table.first;
#pragma GCC unroll 15
    for (size_t u = 0; u < 15; ++u)
        out.values += (wanted > Bytes{} + table.middles[u]) & (Bytes{} + table.steps[u]);
    out.along = sum_of_products(out.values, block.rounded);
    out.square = sum_of_products(out.values, out.values);
}

// x times `factor` as whole numbers from -127 to 127.
BAIZE_TARGET inline void round_block(const float* x, float factor, Bytes& out) {
    int8_t rounded[kInt4Block];
    for (size_t i = 0; i < kInt4Block; ++i) {
        float value = x[i] * factor;
        value = value < -127.0f ? -127.0f : value;
        rounded[i] = int8_t(nearest_int(value > 127.0f ? 127.0f : value));
    }
    std::memcpy(&out, rounded, sizeof out);
}

// The scale of a block that fits best with a table; `gain`: what it takes off the sum of squares.
BAIZE_TARGET inline float best_scale(const Int4Steps& table, const Int4Block& block, float* gain) {
    float scale = 0.0f;
    *gain = -1.0f;
    for (int sign = -1; sign <= 1; sign += 2) {
        Int4Codes codes;
        codes_of(table, sign < 0 ? -block.rounded : block.rounded, block, codes);
        const float fitted = codes.along / codes.square, taken = fitted * codes.along;
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

BAIZE_TARGET inline void scale_block(const float* x, float extreme, Int4Block& block) {
    for (size_t i = 0; i < kInt4Block; ++i) block.x[i] = x[i] / extreme * 127.0f;
    round_block(block.x, 1.0f, block.rounded);
}

// Finds the blocks' scales with both tables, and returns the row's factor.
BAIZE_TARGET float fit_row(const float* x, size_t blocks, Int4Fit* fits) {
    float top = 0.0f;
    for (size_t b = 0; b < blocks; ++b) {
        Int4Fit& fit = fits[b];
        fit.extreme = extreme_of(x + b * kInt4Block);
        Int4Block block;
        scale_block(x + b * kInt4Block, fit.extreme, block);
        float gains[2], scales[2];
        for (int odd = 0; odd < 2; ++odd) scales[odd] = best_scale(kInt4Steps[odd], block, gains + odd);
        fit.odd = gains[1] > gains[0];
        fit.scale = scales[fit.odd];
        const float scale = fit.scale * fit.extreme;
        const float magnitude = float_of(uint32_t(magnitude_bits(scale)));
        top = magnitude > top ? magnitude : top;
    }
    const float factor = top / (127.0f * 127.0f);
    if (factor > 2.1e34f) return 2.1e34f;  // GREATEST_FACTOR of kernels/quantized.py
    return factor < __FLT_MIN__ ? __FLT_MIN__ : factor;
}

BAIZE_TARGET float row_to_int4(const float* x, size_t blocks, Int4Fit* fits, uint8_t* codes, int8_t* scales) {
    const float factor = fit_row(x, blocks, fits);
    for (size_t b = 0; b < blocks; ++b) {
        Int4Block block;
        scale_block(x + b * kInt4Block, fits[b].extreme, block);
        const float ratio = factor * 127.0f / fits[b].extreme;
        const float step = ratio > __FLT_MAX__ ? __FLT_MAX__ : ratio < -__FLT_MAX__ ? -__FLT_MAX__ : ratio;
        const int odd = fits[b].odd;
        const int nearest = nearest_int((fits[b].scale / step - float(odd)) * 0.5f) * 2 + odd;
        float most = 0.0f;  // what a scale of 0 takes off the sum of squares
        Bytes best = Bytes{} + kInt4Values[0];
        int best_of = 0;
        for (const int further : {0, -2, 2}) {
            const int scale = clamped(-126 - odd, nearest + further, 126 + odd);
            const float unit = float(scale) * step;
            Bytes wanted;
            round_block(block.x, 1.0f / (unit == 0.0f ? 1.0f : unit), wanted);
            Int4Codes tried;
            codes_of(kInt4Steps[odd], wanted, block, tried);
            const float gain = (tried.along * 2.0f - unit * tried.square) * unit;
            if (gain > most) {
                most = gain;
                best = tried.values;
                best_of = scale;
            }
        }
        scales[b] = int8_t(best_of);
        const int shift = best_of % 2 ? kInt4Shift : 0;
        Bytes found{};
        for (size_t u = 0; u < 15; ++u)
            found -= best > Bytes{} + int8_t(kInt4Values[u] + shift);  // true is -1
        std::memcpy(codes + b * kInt4Block, &found, sizeof found);
    }
    return factor;
}

constexpr QuantizeKernels kQuantize{.finite = row_is_finite, .int8 = row_to_int8, .int4 = row_to_int4};

}  // namespace

}  // namespace baize
