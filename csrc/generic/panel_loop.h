// The loop over panels of a matrix, for products of many tokens, over the vector type `Vec` of the file that
// includes this.
//
// kPanelTokens tokens at a time keep one vector accumulator for each row of the panel (for 48 rows 396 KiB
// with AVX-512, 198 KiB with AVX2). These, the activations of a block (264 KiB of float32) and the panel are
// what a core goes through for each block: less than Zen 5's L2 cache of 1 MiB with AVX-512, a little more
// than Zen 3's of 512 KiB with AVX2.
#pragma once

#include "csrc/generic/prefetch.h"
#include "csrc/product.h"

namespace baize {

namespace {

// Tokens whose accumulators a panel keeps: 22 register blocks of 6. 256 tokens, the most of a piece of a
// prompt, are 132 and 124, which leaves 4 for a smaller block, where 128 would leave 8 twice.
constexpr size_t kPanelTokens = 132;
constexpr size_t kPanelSums = kPanelTokens * Blocks::panel_rows * Vec::width;  // floats of these

// Calls block.template run<R, T>(row, token) over [0, rows) x [0, tokens).
template <size_t R, size_t T, class Block>
BAIZE_TARGET void over_rows(Block& block, size_t rows, size_t token) {
    block.take(token, T);
    size_t row = 0;
    for (; row + R <= rows; row += R) block.template run<R, T>(row, token);
    for (; row < rows; ++row) block.template run<1, T>(row, token);
}

template <size_t R, size_t T, class Block>
BAIZE_TARGET void over_block(Block& block, size_t rows, size_t tokens) {
    size_t token = 0;
    // 7 or 8 tokens: blocks of 4, rather than one of 6 and a slow one of 1 or 2.
    for (; token + T <= tokens && !(T == 6 && (tokens - token == 7 || tokens - token == 8)); token += T)
        over_rows<R, T>(block, rows, token);
    if constexpr (T > 5)
        if (tokens - token == 5) return over_rows<R, 5>(block, rows, token);
    if constexpr (T > 4)
        for (; token + 4 <= tokens; token += 4) over_rows<R, 4>(block, rows, token);
    if constexpr (T > 2) {
        if (tokens - token == 3) over_rows<R, 3>(block, rows, token);
        if (tokens - token == 2) over_rows<R, 2>(block, rows, token);
    }
    if (tokens - token == 1) over_rows<R, 1>(block, rows, token);
}

// Sums each of `rows` accumulators and writes, or adds, the results to the output of token `token`, from row
// `row` on.
BAIZE_TARGET void put_sums(const Product& what, size_t row, size_t rows, size_t token, const F* sums) {
    float* y = what.y + token * what.ldy + row;
    const bool scaled = what.matrix.kind == Kind::int8;
    size_t r = 0;
    for (; r + Vec::width <= rows; r += Vec::width) {
        F value = Vec::sums(sums + r);
        if (scaled)
            value =
                Vec::mul(value, Vec::template load_as<Dtype::float32>(what.matrix.scales + (row + r) * 4));
        Vec::store(y + r, what.add ? Vec::add(Vec::load(y + r), value) : value);
    }
    for (; r < rows; ++r) {
        const float sum = Vec::sum(sums[r]), value = scaled ? sum * what.matrix.row_scale(row + r) : sum;
        y[r] = what.add ? y[r] + value : value;
    }
}

template <class Panel>
BAIZE_TARGET void panels(const Product& what, size_t begin, size_t end, float* scratch) {
    const Matrix& m = what.matrix;
    const size_t stride = m.row_bytes(), blocks = (m.columns + Panel::block - 1) / Panel::block;
    const size_t block_bytes = m.bytes_of(Panel::block);
    F* sums = reinterpret_cast<F*>(scratch);
    Panel panel{what, scratch + kPanelSums};
    for (size_t first = 0; first < what.tokens; first += kPanelTokens) {
        const size_t tokens = what.tokens - first < kPanelTokens ? what.tokens - first : kPanelTokens;
        for (size_t row = begin; row < end; row += Blocks::panel_rows) {
            const size_t rows = end - row < Blocks::panel_rows ? end - row : Blocks::panel_rows;
            if (!Panel::starts_sums || blocks == 0)  // else register blocks do, in the first block
                for (size_t n = 0; n < tokens * Blocks::panel_rows; ++n) sums[n] = Vec::zero();
            for (size_t block = 0; block < blocks; ++block) {
                const size_t left = m.columns - block * Panel::block;
                panel.fill(row, rows, block * Panel::block, left < Panel::block ? left : Panel::block);
                panel.set_block(block, first, sums);
                const bool last = block + 1 == blocks;
                const uint8_t* next = m.values + (last ? (row + Blocks::panel_rows) * stride
                                                       : row * stride + (block + 1) * block_bytes);
                panel.next = {next, stride, block_bytes, tokens, 0, 0};
                over_block<Panel::rows_at_once, Panel::tokens_at_once>(panel, rows, tokens);
            }
            for (size_t t = 0; t < tokens; ++t)
                put_sums(what, row, rows, first + t, sums + t * Blocks::panel_rows);
        }
    }
}

}  // namespace

}  // namespace baize
