// Products of many tokens: what a panel of rows holds, over the vector type `Vec` of the file that includes
// this.
//
// A panel of Blocks::panel_rows rows by kBlock columns is read in place (AVX-512: 48 rows, 48 KiB of float16)
// or widened once to float32 (96 KiB) or int16 (48 KiB). It streams from the L2 cache once for every register
// block of tokens, whose activations (2 KiB of floats or 1 KiB of codes a token) stay in the L1 cache
// meanwhile. The memory's speed bounds the fewest tokens; for more it is the multiplier: a register block of
// 4 rows by 6 tokens loads 10 vectors for 24 multiply-adds.
#pragma once

#include "csrc/generic/elements.h"
#include "csrc/generic/panel_loop.h"
#include "csrc/generic/register_block.h"

namespace baize {

namespace {

constexpr size_t kPanelFloats = Blocks::panel_rows * kBlock;  // of either panel

// Rows of a float type read in place, or widened.
template <Dtype D, bool in_place>
struct FloatPanel {
    using Rows = MatrixFloats<in_place ? D : Dtype::float32>;
    static constexpr size_t rows_at_once = Blocks::float_rows, tokens_at_once = Blocks::float_tokens,
                            block = kBlock;
    static constexpr bool starts_sums = true;

    const Product& what;
    float* panel;
    Rows rows{};  // from the panel's first row on
    size_t steps = 0;
    const float* x = nullptr;
    F* sums = nullptr;
    bool fresh = false;  // whether the sums begin here
    NextBlock next{};

    BAIZE_TARGET void fill(size_t row, size_t count_rows, size_t begin, size_t count) {
        const Matrix& m = what.matrix;
        const uint8_t* from = m.values + row * m.row_bytes() + m.bytes_of(begin);
        steps = (count + Vec::width - 1) / Vec::width;
        if constexpr (in_place) {
            rows = Rows{from, m.row_bytes()};
        } else {
            rows = Rows{reinterpret_cast<const uint8_t*>(panel), kBlock * sizeof(float)};
            for (size_t r = 0; r < count_rows; ++r) {
                widen_as<D>(from + r * m.row_bytes(), count, panel + r * kBlock);
                for (size_t k = count; k < steps * Vec::width; ++k) panel[r * kBlock + k] = 0.0f;
            }
        }
    }
    void take(size_t token, size_t count) {
        next.take(token, count);
        if constexpr (in_place) {
            rows.ahead = size_t(next.from - rows.w);
            rows.begin = next.begin / 64;
            rows.end = next.end / 64;
        }
    }
    void set_block(size_t block, size_t token, F* to) {
        x = what.x.values + (block * what.tokens + token) * kBlock;
        sums = to;
        fresh = block == 0;
    }
    template <size_t R, size_t T>
    BAIZE_TARGET void run(size_t row, size_t token) const {
        if constexpr (!in_place) next.prefetch<R>(row);
        ask_tokens<T, kBlock>(x + (token + T) * kBlock, row / Blocks::float_rows,
                              (Blocks::panel_rows + Blocks::float_rows - 1) / Blocks::float_rows);
        Rows at = rows;
        at.w += row * rows.stride;
        float_block<R, T>(at, x + token * kBlock, steps,
                          Sums<Blocks::panel_rows>{sums + token * Blocks::panel_rows + row, fresh});
    }
};

struct CodePanel {
    static constexpr size_t rows_at_once = Blocks::int8_rows, tokens_at_once = Blocks::code_tokens,
                            block = kBlock;
    static constexpr bool starts_sums = false;
    static constexpr size_t per_block = kBlock / kSection;

    const Product& what;
    float* memory;  // for the panel
    size_t sections = 0;
    const int16_t* x = nullptr;
    const float* x_factors = nullptr;
    F* sums = nullptr;
    NextBlock next{};

    int16_t* panel() const { return reinterpret_cast<int16_t*>(memory); }

    // Not inlined: GCC would keep its constants in registers, which the register blocks need.
    BAIZE_TARGET __attribute__((noinline)) void fill(size_t row, size_t rows, size_t begin, size_t count) {
        const Matrix& m = what.matrix;
        const size_t stride = m.row_bytes();
        sections = (count + kSection - 1) / kSection;
        for (size_t r = 0; r < rows; ++r) {
            int16_t* to = panel() + r * kBlock;
            const uint8_t* from = m.values + (row + r) * stride + begin;
            size_t k = 0;
            for (; k + Vec::shorts <= count; k += Vec::shorts)
                Vec::store_shorts(to + k, Vec::load_codes(from + k));
            for (; k < count; ++k) to[k] = int8_t(from[k]);
            for (; k < sections * kSection; ++k) to[k] = 0;
        }
    }
    void set_block(size_t block, size_t token, F* to) {
        x = what.x.codes + (block * what.tokens + token) * kBlock;
        x_factors = what.x.scales + (block * what.tokens + token) * per_block;
        sums = to;
    }
    void take(size_t token, size_t count) { next.take(token, count); }
    template <size_t R, size_t T>
    BAIZE_TARGET void run(size_t row, size_t token) const {
        next.prefetch<R>(row);
        ask_tokens<T, kBlock>(x + (token + T) * kBlock, row / rows_at_once,
                              Blocks::panel_rows / rows_at_once);
        code_block<R, T>(PanelCodes{panel() + row * kBlock}, x + token * kBlock,
                         x_factors + token * per_block, sections,
                         Sums<Blocks::panel_rows>{sums + token * Blocks::panel_rows + row});
    }
};

}  // namespace

}  // namespace baize
