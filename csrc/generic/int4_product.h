// Products with int4 weights for any number of tokens, over the vector type `Vec` of the file that includes
// this. The layout of the weights is that of kernels/quantized.py: a lane of a vector holds four columns (a
// quad) of its own row, and meets four codes of a token that are copied to every lane, so that no sum crosses
// lanes. Activations are codes with a scale per group of two blocks: of 8 bits, or of 16 bits with `exact`,
// which takes two planes of 8 bits where the instruction multiplies bytes. Integer sums are exact, and a lane
// adds its blocks in order: the bits depend neither on the number of tokens nor on the vector's width.
//
// A few tokens take each quad from its nibbles once and keep all their sums in registers; the memory's speed
// bounds one token, the multiplier eight. For more tokens kInt4Rows rows of a chunk of columns are unpacked
// (AVX-512: 16 KiB, in the L1 cache) and met by a register block of tokens at a time, whose codes (2 KiB)
// stream from the L2 cache; the multiplier bounds them.
#pragma once

#include "csrc/generic/section.h"

namespace baize {

namespace {

constexpr size_t kInt4Group = 2 * kInt4Block;  // columns of a token that share a scale
constexpr size_t kChunk = kInt4Chunk;  // columns whose weights are unpacked at a time
constexpr size_t kChunkBlocks = kChunk / kInt4Block, kChunkGroups = kChunk / kInt4Group;
static_assert(kChunkGroups == kInt4ChunkScales && kChunkBlocks * 4 == kInt4ChunkStarts);
constexpr size_t kQuads = kInt4Block / 4;  // of a block
constexpr size_t kInt4Vectors = Blocks::int4_vectors;  // vectors of rows that are unpacked together
constexpr size_t kInt4Rows = kInt4Vectors * Vec::width;
constexpr size_t kInt4Tokens = 256;  // tokens whose sums are kept while their panels are met
constexpr float kByteLevels = 127.0f, kExactLevels = 127 * 256 + 127;  // both planes of a code fit in a byte

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
        constexpr size_t ahead = 8;  // blocks: 2 KiB of codes
        for (size_t r = 0; r < R; r += kInt4Panel / Vec::width) {
            for (size_t n = 0; n < kInt4BlockBytes; n += 64)
                __builtin_prefetch(codes[r] + (block + ahead) * kInt4BlockBytes + n, 0, 3);
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

    BAIZE_TARGET F scale(size_t block, size_t r) const { return blocks[block].scales[r]; }
    BAIZE_TARGET typename Vec::I start(size_t, size_t, const int32_t* starts) const {
        return Vec::all_totals(starts[0]);
    }
    BAIZE_TARGET void quads(size_t block, size_t q, size_t r, typename Vec::Quads& low,
                            typename Vec::Quads& high) const {
        low = blocks[block].quads[q][r];
        high = blocks[block].quads[kQuads / 2 + q][r];
    }
    void prefetch(size_t) const {}
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

// The rows of one product's task, counted from the first row of the matrix's first panel.
struct Int4Task {
    const Product& what;
    size_t begin, end, blocks;  // blocks of a row

    template <size_t planes>
    Int4Tokens<planes> tokens(size_t chunk, size_t token) const {
        const size_t place = chunk * what.tokens;
        const Int4Tokens<planes> first{
            reinterpret_cast<const int8_t*>(what.x.bytes) + place * planes * kChunk,
            what.x.starts + place * planes * kChunkBlocks * 2, what.x.scales + place * kChunkGroups};
        return first.from(token);
    }
    size_t last() const {  // of the rows that the panels hold: whole vectors
        return (end + Vec::width - 1) / Vec::width * Vec::width;
    }
    size_t blocks_of(size_t chunk) const {
        const size_t left = blocks - chunk * kChunkBlocks;
        return left < kChunkBlocks ? left : kChunkBlocks;
    }
    template <size_t R>
    StoredRows<R> rows(size_t row, size_t chunk) const {
        StoredRows<R> found;
        for (size_t r = 0; r < R; ++r) {
            const size_t of = row + r * Vec::width, lane = of % kInt4Panel;
            const size_t block = of / kInt4Panel * blocks + chunk * kChunkBlocks;
            found.codes[r] = what.matrix.values + block * kInt4BlockBytes + lane * 4;
            found.scales[r] = reinterpret_cast<const int8_t*>(what.matrix.scales) + block * kInt4Panel + lane;
        }
        return found;
    }
    // Writes, or adds, the sums of the rows of a vector that belong to the task.
    BAIZE_TARGET void put(size_t row, size_t token, F sums) const {
        const size_t first = what.matrix.first;
        float* y = what.y + token * what.ldy;
        if (row >= begin && row + Vec::width <= end) {
            y += row - first;
            const F value = Vec::mul(sums, Vec::load(what.matrix.factors + (row - first)));
            Vec::store(y, what.add ? Vec::add(Vec::load(y), value) : value);
            return;
        }
        alignas(64) float each[Vec::width];
        Vec::store(each, sums);
        for (size_t n = row < begin ? begin - row : 0; n < Vec::width && row + n < end; ++n) {
            const float value = each[n] * what.matrix.factors[row + n - first];
            float& to = y[row + n - first];
            to = what.add ? to + value : value;
        }
    }
};

constexpr size_t few_int4_tokens(size_t planes) { return Blocks::few_int4_tokens / planes; }

// R vectors of rows from `row` on and all tokens.
template <size_t R, size_t planes>
BAIZE_TARGET inline void few_int4_rows(const Int4Task& task, size_t row) {
    constexpr size_t most = few_int4_tokens(planes);
    const size_t tokens = task.what.tokens;
    F sums[most * R];
    for (size_t n = 0; n < tokens * R; ++n) sums[n] = Vec::zero();
    for (size_t chunk = 0; chunk * kChunkBlocks < task.blocks; ++chunk)
        int4_tokens<R, most>(task.template rows<R>(row, chunk), task.template tokens<planes>(chunk, 0),
                             task.blocks_of(chunk), tokens, sums);
    for (size_t t = 0; t < tokens; ++t)
        for (size_t r = 0; r < R; ++r) task.put(row + r * Vec::width, t, sums[t * R + r]);
}

template <size_t planes>
BAIZE_TARGET void few_int4(const Int4Task& task) {
    size_t row = task.begin / Vec::width * Vec::width;
    constexpr size_t R = Blocks::few_int4_vectors;
    for (; row + R * Vec::width <= task.last(); row += R * Vec::width) few_int4_rows<R, planes>(task, row);
    for (; row < task.last(); row += Vec::width) few_int4_rows<1, planes>(task, row);
}

BAIZE_TARGET inline void unpack_rows(const StoredRows<1>& from, size_t blocks, size_t r,
                                     UnpackedRows::Block* to) {
    for (size_t block = 0; block < blocks; ++block) {
        for (size_t n = 0; n < kInt4BlockBytes; n += 64)  // the next chunk, or the next panel
            __builtin_prefetch(from.codes[0] + (block + blocks) * kInt4BlockBytes + n, 0, 2);
        to[block].scales[r] = from.scale(block, 0);
        const auto odd = from.odd(block, 0);
        for (size_t q = 0; q < kQuads / 2; ++q) {
            typename Vec::Quads low, high;
            from.quads(block, q, 0, low, high);
            to[block].quads[q][r] = Vec::shifted(low, odd);
            to[block].quads[kQuads / 2 + q][r] = Vec::shifted(high, odd);
        }
    }
}

// Tiles::run computes int4_tile<kInt4Vectors, Tiles::tokens> in another way; 0 tokens: not at all.
struct NoTiles {
    static constexpr size_t tokens = 0;
    BAIZE_TARGET static void start() {}
    BAIZE_TARGET static void stop() {}
    BAIZE_TARGET static void run(const UnpackedRows&, const Int4Tokens<1>&, size_t, F*) {}
};

template <size_t planes, class Tiles>
BAIZE_TARGET void many_int4(const Int4Task& task, float* scratch) {
    constexpr size_t R = kInt4Vectors, T = Blocks::int4_tokens / planes;
    auto* panel = reinterpret_cast<UnpackedRows::Block*>(scratch);
    F* sums = reinterpret_cast<F*>(panel + kChunkBlocks);
    const size_t last = task.last();
    Tiles::start();
    for (size_t first = 0; first < task.what.tokens; first += kInt4Tokens) {
        const size_t left = task.what.tokens - first, tokens = left < kInt4Tokens ? left : kInt4Tokens;
        for (size_t row = task.begin / Vec::width * Vec::width; row < last; row += kInt4Rows) {
            for (size_t n = 0; n < tokens * R; ++n) sums[n] = Vec::zero();
            for (size_t chunk = 0; chunk * kChunkBlocks < task.blocks; ++chunk) {
                const size_t blocks = task.blocks_of(chunk);
                for (size_t r = 0; r < R && row + r * Vec::width < last; ++r)
                    unpack_rows(task.template rows<1>(row + r * Vec::width, chunk), blocks, r, panel);
                size_t t = 0;
                if constexpr (Tiles::tokens > 0 && planes == 1)
                    for (; t + Tiles::tokens <= tokens; t += Tiles::tokens)
                        Tiles::run(UnpackedRows{panel}, task.template tokens<1>(chunk, first + t), blocks,
                                   sums + t * R);
                for (; t < tokens; t += T)
                    int4_tokens<R, T>(UnpackedRows{panel}, task.template tokens<planes>(chunk, first + t),
                                      blocks, tokens - t < T ? tokens - t : T, sums + t * R);
            }
            for (size_t t = 0; t < tokens; ++t)
                for (size_t r = 0; r < R && row + r * Vec::width < last; ++r)
                    task.put(row + r * Vec::width, first + t, sums[t * R + r]);
        }
    }
    Tiles::stop();
}

template <bool exact>
constexpr size_t kPlanes = exact ? 2 : 1;

template <bool exact, class Tiles>
BAIZE_TARGET void int4_product(const Product& what, size_t begin, size_t end, float* scratch) {
    const Matrix& m = what.matrix;
    const Int4Task task{what, m.first + begin, m.first + end, m.int4_blocks()};
    if (what.tokens <= few_int4_tokens(kPlanes<exact>)) return few_int4<kPlanes<exact>>(task);
    many_int4<kPlanes<exact>, Tiles>(task, scratch);
}

// A block of x, times `inverse`, as codes: their low bytes and the rest divided by 256, kChunk apart, and
// what totals with them begin with where scales are even and odd.
template <bool exact>
BAIZE_TARGET void encode_block(const float* x, F inverse, int8_t* codes, int32_t* starts) {
    alignas(64) int32_t low[kInt4Block], high[kInt4Block] = {};
    for (size_t k = 0; k < kInt4Block; k += Vec::width)
        Vec::store_total(low + k, Vec::to_int(Vec::mul(Vec::load(x + k), inverse)));
    if (exact)
        for (size_t k = 0; k < kInt4Block; ++k) {
            high[k] = (low[k] + 128) >> 8;
            low[k] -= high[k] * 256;
            codes[kChunk + k] = int8_t(high[k]);
        }
    int32_t of_low = 0, of_high = 0;
    for (size_t k = 0; k < kInt4Block; ++k) {
        codes[k] = int8_t(low[k]);
        of_low += low[k];
        of_high += high[k];
    }
    starts[0] = -Vec::quad_bias * of_low;
    starts[1] = (kInt4Shift - Vec::quad_bias) * of_low;
    if (!exact) return;
    starts[kChunkBlocks * 2] = -Vec::quad_bias * of_high;
    starts[kChunkBlocks * 2 + 1] = (kInt4Shift - Vec::quad_bias) * of_high;
}

template <bool exact>
BAIZE_TARGET void prepare_int4(Kind, const TokenRow& row, const ActivationMemory& to) {
    const auto [x, columns, token, tokens] = row;
    constexpr size_t planes = kPlanes<exact>;
    constexpr float levels = exact ? kExactLevels : kByteLevels;
    for (size_t begin = 0; begin < columns; begin += kInt4Group) {
        const Section<kInt4Group> found(x + begin, columns - begin < kInt4Group ? columns - begin : kInt4Group);
        const size_t place = begin / kChunk * tokens + token, at = begin % kChunk;
        const F inverse = Vec::all(found.inverse(levels));
        int8_t* codes = reinterpret_cast<int8_t*>(to.bytes) + place * planes * kChunk + at;
        int32_t* starts = to.starts + (place * planes * kChunkBlocks + at / kInt4Block) * 2;
        for (size_t n = 0; n < kInt4Group; n += kInt4Block) {
            alignas(64) const float zeros[kInt4Block] = {};
            encode_block<exact>(found.finite ? found.from + n : zeros, inverse, codes + n,
                                starts + n / kInt4Block * 2);
        }
        to.scales[place * kChunkGroups + at / kInt4Group] = found.scale(levels);
    }
}

constexpr size_t kInt4Scratch =
    (kChunkBlocks * sizeof(UnpackedRows::Block) + kInt4Tokens * kInt4Vectors * sizeof(F)) / sizeof(float);

template <bool exact, class Tiles = NoTiles>
constexpr ProductKernels kInt4Product{
    .prepare = prepare_int4<exact>, .run = int4_product<exact, Tiles>, .scratch = kInt4Scratch};

}  // namespace

}  // namespace baize
