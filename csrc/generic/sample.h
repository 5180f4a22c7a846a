// The loops of sample.h, for the instruction set of the file that includes this. Plain arithmetic, which the
// compiler vectorises; without contraction, and with fixed lanes, all instruction sets give the same bits.
//
// They walk a row of logits in blocks of kBestBlock. A row of 32,000 (125 KiB) stays in the L2 cache between
// them; the multiplier bounds weigh_logits, the loads the others.
#pragma once

#include <cstring>

#include "csrc/half.h"
#include "csrc/sample.h"

namespace baize {

namespace {

// An int32 with the same order as the float.
BAIZE_TARGET inline int32_t order_of(float value) {
    const int32_t bits = int32_t(bits_of(value + 0.0f));
    return bits ^ (bits >> 31 & 0x7fffffff);
}

BAIZE_TARGET bool block_maxima(const float* logits, size_t size, float* greatest) {
    uint32_t broken = 0;
    size_t n = 0;
    for (; n + kBestBlock <= size; n += kBestBlock) {
        int32_t best = INT32_MIN;
        for (size_t i = 0; i < kBestBlock; ++i) {
            const int32_t order = order_of(logits[n + i]);
            best = order > best ? order : best;
            broken |= uint32_t((bits_of(logits[n + i]) & 0x7f800000u) == 0x7f800000u);
        }
        greatest[n / kBestBlock] = float_of(uint32_t(best ^ (best >> 31 & 0x7fffffff)));
    }
    if (n < size) {
        float padded[kBestBlock];
        for (size_t i = 0; i < kBestBlock; ++i) padded[i] = logits[n + i < size ? n + i : n];
        broken |= !block_maxima(padded, kBestBlock, greatest + n / kBestBlock);
    }
    return !broken;
}

BAIZE_TARGET void scale_logits(const float* logits, size_t size, float temperature, float* scaled) {
    for (size_t i = 0; i < size; ++i) {
        const float x = logits[i] / temperature;
        scaled[i] = x < -__FLT_MAX__ ? -__FLT_MAX__ : x;
    }
}

// exp(x) for -700 <= x <= 0 within 2^-46: 2^n times a polynomial in r, |r| <= log(2) / 2.
BAIZE_TARGET inline double exp_in_double(double x) {
    constexpr double shift = 0x1.8p52;  // moves the integer part to the last places of a double
    const double shifted = x * 0x1.71547652b82fep0 + shift, n = shifted - shift;
    const double r = x - n * 0x1.62e42feep-1 - n * 0x1.a39ef35793c76p-33;
    const double r2 = r * r, r4 = r2 * r2;
    const double low = (1.0 + r) + (0.5 + r * (1.0 / 6.0)) * r2;
    const double middle = (1.0 / 24.0 + r * (1.0 / 120.0)) + (1.0 / 720.0 + r * (1.0 / 5040.0)) * r2;
    const double high =
        (1.0 / 40320.0 + r * (1.0 / 362880.0)) + (1.0 / 3628800.0 + r * (1.0 / 39916800.0)) * r2;
    const double sum = low + (middle + high * r4) * r4;
    return sum *
           __builtin_bit_cast(double, (__builtin_bit_cast(uint64_t, shifted) << 52) + 0x3ff0000000000000u);
}

BAIZE_TARGET double weigh_logits(const float* x, size_t size, double top, double* weights) {
    constexpr double shift = 0x1.8p18;  // its unit in the last place is 2^-34
    double total = 0.0;
    for (size_t n = 0; n < size; n += kBestBlock) {
        const size_t count = size - n < kBestBlock ? size - n : kBestBlock;
        double lanes[4] = {}, found[kBestBlock];
        float from[kBestBlock];
        for (size_t i = 0; i < kBestBlock; ++i) from[i] = -__FLT_MAX__;
        std::memcpy(from, x + n, count * sizeof(float));
        for (size_t i = 0; i < kBestBlock; ++i) {
            const double below = double(from[i]) - top;
            found[i] = below < -700.0 ? -700.0 : below;
        }
        for (size_t i = 0; i < kBestBlock; ++i) found[i] = (exp_in_double(found[i]) + shift) - shift;
        for (size_t i = 0; i < kBestBlock; i += 4)
            for (size_t lane = 0; lane < 4; ++lane) lanes[lane] += found[i + lane];
        if (weights) std::memcpy(weights + n, found, count * sizeof(double));
        total += (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
    }
    return total;
}

BAIZE_TARGET bool draw_bits(uint32_t row_hash, uint32_t first, uint32_t limit, uint32_t* bits) {
    uint32_t any = 0;
    for (uint32_t i = 0; i < kBestBlock; ++i) {
        const uint32_t found = mix(row_hash ^ mix(first + i + 0x85ebca6bu)) >> 9;
        bits[i] = found;
        any |= uint32_t(int32_t(found) >= int32_t(limit));
    }
    return any != 0;
}

constexpr SampleKernels kSample{
    .maxima = block_maxima, .scale = scale_logits, .weigh = weigh_logits, .draw = draw_bits};

}  // namespace

}  // namespace baize
