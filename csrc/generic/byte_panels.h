// Products of int8 weights with activations of 8 bits for any number of tokens, by panels (panel_loop.h),
// over the vector type `Vec` of the file that includes this. A token's bits do not depend on the other tokens
// here either, but they differ from those of product.h.
//
// A section of x becomes codes from 1 to 2 * zero - 1 around `zero`, because the multiplier takes unsigned by
// signed bytes: x ~ (u - zero) * f. The zero's share, zero times the sum of a section's weights, is
// subtracted in floats, a vector of sections at a time. Integer sums are exact in any grouping.
//
// A panel of Blocks::panel_rows rows by kByteBlock columns (AVX2: 48 KiB) streams from the L2 cache once for
// every register block of tokens, whose activations (1 KiB a token) stay in the L1 cache meanwhile. The
// multiplier bounds it, with the widening of its 16-bit sums.
#pragma once

#include "csrc/generic/panel_loop.h"
#include "csrc/generic/section.h"

namespace baize {

namespace {

// The codes' zero, chosen so that the sum of two products fits in 16 bits: 127 * 128 * 2.
constexpr int kZero = 64, kLevels = kZero - 1;

// totals[t][r] of one section, for R rows and T tokens. With `Twos`, the pairs' sums of two vectors are added
// before widening.
template <size_t R, size_t T, bool Twos>
BAIZE_TARGET inline void byte_totals(const int8_t* w, const uint8_t* x, typename Vec::I (&totals)[T][R]) {
    constexpr size_t vectors = kSection / Vec::bytes, step = Twos ? 2 : 1;
#pragma GCC unroll 16
    for (size_t n = 0; n < vectors; n += step)
#pragma GCC unroll 16
        for (size_t t = 0; t < T; ++t) {
            const uint8_t* at = x + t * kByteBlock + n * Vec::bytes;
            const auto one = Vec::load_bytes(at), two = Vec::load_bytes(at + (step - 1) * Vec::bytes);
#pragma GCC unroll 16
            for (size_t r = 0; r < R; ++r) {
                const int8_t* row = w + r * kByteBlock + n * Vec::bytes;
                auto pairs = Vec::pairs(one, Vec::load_bytes(row));
                if (Twos) pairs = Vec::add_pairs(pairs, Vec::pairs(two, Vec::load_bytes(row + Vec::bytes)));
                totals[t][r] = n == 0 ? Vec::total(pairs) : Vec::plus(totals[t][r], Vec::total(pairs));
            }
        }
}

// Rows of a panel and tokens of a block. `own`: the tokens' factors; `fits`: whether a row's section may use
// `Twos`.
struct ByteBlock {
    const int8_t* w;
    const uint8_t* x;
    const float *own, *shares;
    const uint8_t* fits;
    size_t sections;
};

// Adds the products of R rows and T tokens over a block's sections to sums[t * Blocks::panel_rows + r].
// Not inlined: GCC would fold the addresses into instructions too long for the processor to decode in time.
template <size_t R, size_t T>
BAIZE_TARGET __attribute__((noinline)) void byte_block(const ByteBlock& block, F* sums) {
    auto [w, x, own, shares, fits, sections] = block;
    for (size_t s = 0; s < sections; ++s, w += kSection, x += kSection) {
        typename Vec::I totals[T][R];
        uint8_t fit = 1;
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r) fit &= fits[r * kByteFactors + s];
        if (fit)
            byte_totals<R, T, true>(w, x, totals);
        else
            byte_totals<R, T, false>(w, x, totals);
#pragma GCC unroll 16
        for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 16
            for (size_t r = 0; r < R; ++r) {
                F& sum = sums[t * Blocks::panel_rows + r];
                sum = Vec::fma(Vec::to_float(totals[t][r]), Vec::all(own[t * kByteFactors + s]), sum);
            }
        __asm__("" ::: "memory");  // keeps the sums in place: GCC would also copy them to the stack
    }
    constexpr size_t corrections = kByteFactors / Vec::width;  // in vectors
#pragma GCC unroll 16
    for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (size_t n = 0; n < corrections; ++n) {
                F& sum = sums[t * Blocks::panel_rows + r];
                sum = Vec::fma(Vec::load(shares + r * kByteFactors + n * Vec::width),
                               Vec::load(own + t * kByteFactors + n * Vec::width), sum);
            }
}

struct BytePanel {
    static constexpr size_t rows_at_once = Blocks::byte_rows, tokens_at_once = Blocks::byte_tokens;
    static constexpr size_t block = kByteBlock, vectors = kSection / Vec::bytes;
    static constexpr bool starts_sums = false;

    const Product& what;
    float* memory;  // the zero's shares; flags; then the panel
    size_t sections = 0;
    const uint8_t* x = nullptr;
    const float* x_factors = nullptr;
    F* sums = nullptr;
    NextBlock next{};

    float* shares() const { return memory; }
    uint8_t* fits() const { return reinterpret_cast<uint8_t*>(shares() + Blocks::panel_rows * kByteFactors); }
    int8_t* panel() const { return reinterpret_cast<int8_t*>(fits() + Blocks::panel_rows * kByteFactors); }

    BAIZE_TARGET void fill(size_t row, size_t rows, size_t begin, size_t count) {
        const Matrix& m = what.matrix;
        const size_t stride = m.row_bytes();
        sections = (count + kSection - 1) / kSection;
        std::memset(shares(), 0, rows * kByteFactors * sizeof(float));
        for (size_t r = 0; r < rows; ++r) {
            int8_t* to = panel() + r * kByteBlock;
            std::memcpy(to, m.values + (row + r) * stride + begin, count);
            std::memset(to + count, 0, sections * kSection - count);
            for (size_t s = 0; s < sections; ++s) {
                shares()[r * kByteFactors + s] =
                    -float(kZero) * Vec::sum(Vec::to_float(sum_of(to + s * kSection)));
                fits()[r * kByteFactors + s] = all_fit(to + s * kSection);
            }
        }
    }
    BAIZE_TARGET static typename Vec::I sum_of(const int8_t* w) {
        typename Vec::I total = Vec::no_total();
        for (size_t n = 0; n < vectors; ++n)
            total = Vec::plus(total,
                              Vec::total(Vec::pairs(Vec::all_bytes(1), Vec::load_bytes(w + n * Vec::bytes))));
        return total;
    }
    // Whether the products of two vectors may be summed before widening, whatever the activations are.
    BAIZE_TARGET static bool all_fit(const int8_t* w) {
        bool good = true;
        for (size_t n = 0; n + 1 < vectors; n += 2)
            good = Vec::fit(Vec::load_bytes(w + n * Vec::bytes), Vec::load_bytes(w + (n + 1) * Vec::bytes)) &&
                   good;
        return good;
    }
    void set_block(size_t block, size_t token, F* to) {
        x = what.x.bytes + (block * what.tokens + token) * kByteBlock;
        x_factors = what.x.scales + (block * what.tokens + token) * kByteFactors;
        sums = to;
    }
    void take(size_t token, size_t count) { next.take(token, count); }
    template <size_t R, size_t T>
    BAIZE_TARGET void run(size_t row, size_t token) const {
        next.prefetch<R>(row);
        ask_tokens<T, kByteBlock>(x + (token + T) * kByteBlock, row / Blocks::byte_rows,
                                  Blocks::panel_rows / Blocks::byte_rows);
        const ByteBlock block{
            .w = panel() + row * kByteBlock,
            .x = x + token * kByteBlock,
            .own = x_factors + token * kByteFactors,
            .shares = shares() + row * kByteFactors,
            .fits = fits() + row * kByteFactors,
            .sections = sections,
        };
        byte_block<R, T>(block, sums + token * Blocks::panel_rows + row);
    }
};

BAIZE_TARGET void product_by_panels(const Product& what, size_t begin, size_t end, float* scratch) {
    panels<BytePanel>(what, begin, end, scratch);
}

constexpr size_t kBytePanelFloats =
    Blocks::panel_rows * (kByteFactors + (kByteFactors + kByteBlock) / sizeof(float));

// x as bytes, with a scale per section of columns. Columns that pad the last section are zero, and so are a
// block's other scales.
BAIZE_TARGET void prepare_for_panels(Kind, const TokenRow& row, const ActivationMemory& to) {
    const auto [x, columns, token, tokens] = row;
    for (size_t begin = 0; begin < columns; begin += kSection) {
        const size_t place = begin / kByteBlock * tokens + token;
        float* scales = to.scales + place * kByteFactors;
        if (begin % kByteBlock == 0)
            for (size_t n = 0; n < kByteFactors; ++n) scales[n] = 0.0f;
        const Section<kSection> found(x + begin, columns - begin < kSection ? columns - begin : kSection);
        constexpr float levels = float(kLevels);
        uint8_t* codes = to.bytes + place * kByteBlock + begin % kByteBlock;
        if (found.finite)
            for (size_t k = 0; k < kSection; k += Vec::bytes)
                Vec::encode_bytes(found.from + k, Vec::all(found.inverse(levels)), kZero, codes + k);
        else
            std::memset(codes, kZero, kSection);
        scales[begin % kByteBlock / kSection] = found.scale(levels);
    }
}

constexpr ProductKernels kBytePanels{
    .prepare = prepare_for_panels, .run = product_by_panels, .scratch = kPanelSums + kBytePanelFloats};

}  // namespace

}  // namespace baize
