// The register block of int4 products, over the vector type `Vec` of the file that includes this: R vectors
// of rows and T tokens over a chunk of columns.
//
// The layout of the weights is that of kernels/quantized.py: a lane of a vector holds four columns (a quad)
// of its own row, and meets four codes of a token that are copied to every lane, so that no sum crosses
// lanes. Integer sums are exact, and a lane adds its blocks in order: the bits depend neither on the number
// of tokens nor on the vector's width. The multiplier bounds it: 8 multiplications a block, token and vector
// of rows, beside a conversion and a multiply-add.
#pragma once

#include "csrc/generic/int4_activations.h"

namespace baize {

namespace {

constexpr size_t kQuads = kInt4Block / 4;  // of a block
constexpr size_t kInt4Vectors = Blocks::int4_vectors;  // vectors of rows that are unpacked together
constexpr size_t kInt4Rows = kInt4Vectors * Vec::width;

// A chunk of tokens' activations: codes (token, plane, column), totals to begin with (token, plane, block, 2)
// for even and odd scales, and scales (token, group).
template <size_t planes>
struct Int4Tokens {
    const int8_t* codes;
    const int32_t* starts;
    const float* scales;

    Int4Tokens from(size_t token) const {
        return {codes + token * planes * kChunk, starts + token * planes * kChunkBlocks * 2,
                scales + token * kChunkGroups};
    }
    const int8_t* quad(size_t t, size_t plane, size_t block, size_t q) const {
        return codes + (t * planes + plane) * kChunk + block * kInt4Block + q * 4;
    }
    const int32_t* start(size_t t, size_t plane, size_t block) const {
        return starts + ((t * planes + plane) * kChunkBlocks + block) * 2;
    }
};

// R vectors of rows as they are stored, from a panel's block on.
template <size_t R>
struct StoredRows {
    const uint8_t* codes[R];
    const int8_t* scales[R];

    BAIZE_TARGET F scale(size_t block, size_t r) const {
        return Vec::widen_scales(scales[r] + block * kInt4Panel);
    }
    BAIZE_TARGET typename Vec::Odd odd(size_t block, size_t r) const {
        return Vec::odd_scales(scales[r] + block * kInt4Panel);
    }
    BAIZE_TARGET typename Vec::I start(size_t block, size_t r, const int32_t* starts) const {
        return Vec::start(starts, odd(block, r));
    }
    BAIZE_TARGET void quads(size_t block, size_t q, size_t r, typename Vec::Quads& low,
                            typename Vec::Quads& high) const {
        Vec::unpack_quads(codes[r] + block * kInt4BlockBytes + q * 4 * kInt4Panel, low, high);
    }
    // Always inlined: GCC drops calls of a function that does nothing but prefetch.
    BAIZE_TARGET __attribute__((always_inline)) void prefetch(size_t block) const {
        constexpr size_t ahead = 12;  // blocks: 3 KiB of codes
        for (size_t r = 0; r < R; r += kInt4Panel / Vec::width) {
            for (size_t n = 0; n < kInt4BlockBytes; n += 64)
                __builtin_prefetch(codes[r] + (block + ahead) * kInt4BlockBytes + n, 0, 0);
            if (block % 4 == 0) __builtin_prefetch(scales[r] + (block + 2 * ahead) * kInt4Panel, 0, 3);
        }
    }
};

// kInt4Vectors vectors of rows, unpacked and shifted: a chunk of columns.
struct UnpackedRows {
    struct Block {
        typename Vec::Quads quads[kQuads][kInt4Vectors];
        F scales[kInt4Vectors];
    };
    const Block* blocks;
    // What is unpacked next: while these are met, `count` lines of each of its panels, from `line` on, are
    // prefetched from memory.
    StoredRows<kInt4Vectors> next;
    size_t line, count;

    BAIZE_TARGET F scale(size_t block, size_t r) const { return blocks[block].scales[r]; }
    BAIZE_TARGET typename Vec::I start(size_t, size_t, const int32_t* starts) const {
        return Vec::all_totals(starts[0]);
    }
    BAIZE_TARGET void quads(size_t block, size_t q, size_t r, typename Vec::Quads& low,
                            typename Vec::Quads& high) const {
        low = blocks[block].quads[q][r];
        high = blocks[block].quads[kQuads / 2 + q][r];
    }
    BAIZE_TARGET __attribute__((always_inline)) void prefetch(size_t block) const {
        constexpr size_t of_panel = kInt4Panel / Vec::width;  // vectors
        constexpr size_t step = of_panel < kInt4Vectors ? of_panel : kInt4Vectors;
        for (size_t n = count * block / kChunkBlocks; n < count * (block + 1) / kChunkBlocks; ++n)
            for (size_t r = 0; r < kInt4Vectors; r += step)
                __builtin_prefetch(next.codes[r] + (line + n) * 64, 0, 2);
    }
};

// The sums over a block of R vectors of rows and T tokens, times the rows' scales, put into or added to
// `group`.
template <bool first, size_t R, size_t T, size_t planes, class Rows>
BAIZE_TARGET inline void add_block(const Rows& rows, const Int4Tokens<planes>& x, size_t block,
                                   F (&group)[T][R]) {
    typename Vec::I totals[T][R][planes];
#pragma GCC unroll 16
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 2
            for (size_t p = 0; p < planes; ++p) totals[t][r][p] = rows.start(block, r, x.start(t, p, block));
#pragma GCC unroll 4
    for (size_t q = 0; q < kQuads / 2; ++q) {
        typename Vec::Quads low[R], high[R];
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r) rows.quads(block, q, r, low[r], high[r]);
#pragma GCC unroll 16
        for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 2
            for (size_t p = 0; p < planes; ++p) {
                const auto one = Vec::all_quads(x.quad(t, p, block, q)),
                           two = Vec::all_quads(x.quad(t, p, block, kQuads / 2 + q));
#pragma GCC unroll 16
                for (size_t r = 0; r < R; ++r)
                    totals[t][r][p] =
                        Vec::add_quads(Vec::add_quads(totals[t][r][p], low[r], one), high[r], two);
            }
    }
#pragma GCC unroll 16
    for (size_t r = 0; r < R; ++r) {
        const F scale = rows.scale(block, r);
#pragma GCC unroll 16
        for (size_t t = 0; t < T; ++t) {
            typename Vec::I total = totals[t][r][0];
            if (planes == 2) total = Vec::plus_256_times(total, totals[t][r][planes - 1]);
            const F value = Vec::to_float(total);
            group[t][r] = first ? Vec::mul(value, scale) : Vec::fma(value, scale, group[t][r]);
        }
    }
}

// Adds the products of R vectors of rows and T tokens over `blocks` blocks of a chunk to sums[t * R + r].
template <size_t R, size_t T, size_t planes, class Rows>
BAIZE_TARGET inline void int4_tile(const Rows& rows, const Int4Tokens<planes>& x, size_t blocks, F* sums) {
    F own[T][R];
#pragma GCC unroll 16
    for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r) own[t][r] = sums[t * R + r];
    for (size_t block = 0; block < blocks; block += 2) {
        F group[T][R];
        rows.prefetch(block);
        add_block<true, R, T>(rows, x, block, group);
        if (block + 1 < blocks) {
            rows.prefetch(block + 1);
            add_block<false, R, T>(rows, x, block + 1, group);
        }
#pragma GCC unroll 16
        for (size_t t = 0; t < T; ++t) {
            const F scale = Vec::all(x.scales[t * kChunkGroups + block / 2]);
#pragma GCC unroll 16
            for (size_t r = 0; r < R; ++r) own[t][r] = Vec::fma(group[t][r], scale, own[t][r]);
        }
    }
#pragma GCC unroll 16
    for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r) sums[t * R + r] = own[t][r];
}

// Calls int4_tile for `tokens` tokens, at most T.
template <size_t R, size_t T, size_t planes, class Rows>
BAIZE_TARGET inline void int4_tokens(const Rows& rows, const Int4Tokens<planes>& x, size_t blocks,
                                     size_t tokens, F* sums) {
    if constexpr (T > 1)
        if (tokens < T) return int4_tokens<R, T - 1>(rows, x, blocks, tokens, sums);
    int4_tile<R, T>(rows, x, blocks, sums);
}

}  // namespace

}  // namespace baize
