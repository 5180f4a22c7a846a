// Products with int4 weights for any number of tokens, over the vector type `Vec` of the file that includes
// this.
//
// A few tokens take each quad from its nibbles once and keep all their sums in registers; the memory's speed
// bounds one token. Two panels at a time, each a long stream, share the loads of a token's quads: gate and up
// of 1.26B took 5.9 ms with five tokens, and 9 by unpacked rows, where one takes 4.2 (two cores of Zen 5).
// For more tokens kInt4Rows rows of a chunk of columns are unpacked (AVX-512: 16 KiB, in the L1 cache) and
// met by a register block of tokens at a time, whose codes (2 KiB) stream from the L2 cache; the multiplier
// bounds them.
#pragma once

#include "csrc/generic/int4_tile.h"

namespace baize {

namespace {

constexpr size_t kInt4Tokens = 256;  // tokens whose sums are kept while their panels are met

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
    // The first row of vector r where panels that are computed together lie `apart` rows from one another.
    static size_t place(size_t r, size_t apart) {
        return r * Vec::width / kInt4Panel * apart + r * Vec::width % kInt4Panel;
    }
    size_t last() const {  // of the rows that the panels hold: whole vectors
        return (end + Vec::width - 1) / Vec::width * Vec::width;
    }
    size_t blocks_of(size_t chunk) const {
        const size_t left = blocks - chunk * kChunkBlocks;
        return left < kChunkBlocks ? left : kChunkBlocks;
    }
    // R vectors of rows from `row` on. `apart`: as in `place`.
    template <size_t R>
    StoredRows<R> rows(size_t row, size_t chunk, size_t apart = kInt4Panel) const {
        StoredRows<R> found;
        for (size_t r = 0; r < R; ++r) {
            const size_t of = row + place(r, apart), lane = of % kInt4Panel;
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

// R vectors of rows from `row` on, of panels `apart` rows from one another, and all tokens.
template <size_t R, size_t planes>
BAIZE_TARGET inline void few_int4_rows(const Int4Task& task, size_t row, size_t apart) {
    constexpr size_t most = few_int4_tokens(planes);
    const size_t tokens = task.what.tokens;
    F sums[most * R];
    for (size_t n = 0; n < tokens * R; ++n) sums[n] = Vec::zero();
    for (size_t chunk = 0; chunk * kChunkBlocks < task.blocks; ++chunk)
        int4_tokens<R, most>(task.template rows<R>(row, chunk, apart), task.template tokens<planes>(chunk, 0),
                             task.blocks_of(chunk), tokens, sums);
    for (size_t t = 0; t < tokens; ++t)
        for (size_t r = 0; r < R; ++r) task.put(row + task.place(r, apart), t, sums[t * R + r]);
}

// Panels that are computed together are streams of their own, each through its share of the task.
template <size_t R, size_t planes>
BAIZE_TARGET void few_int4_streams(const Int4Task& task) {
    constexpr size_t many = R * Vec::width / kInt4Panel, streams = many ? many : 1;
    constexpr size_t step = R * Vec::width / streams;
    size_t row = task.begin / Vec::width * Vec::width;
    const size_t apart = (task.last() - row) / streams / step * step;
    for (const size_t end = row + apart; row < end; row += step) few_int4_rows<R, planes>(task, row, apart);
    for (row += apart * (streams - 1); row < task.last(); row += Vec::width)
        few_int4_rows<1, planes>(task, row, 0);
}

template <size_t planes>
BAIZE_TARGET void few_int4(const Int4Task& task) {
    few_int4_streams<Blocks::few_int4_vectors, planes>(task);
}

BAIZE_TARGET inline void unpack_rows(const StoredRows<1>& from, size_t blocks, size_t r,
                                     UnpackedRows::Block* to) {
    for (size_t block = 0; block < blocks; ++block) {
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
                const bool more = (chunk + 1) * kChunkBlocks < task.blocks;
                const size_t further = more ? row : row + kInt4Rows, parts = (tokens + T - 1) / T;
                const StoredRows<R> next = task.template rows<R>(further, more ? chunk + 1 : 0);
                const size_t lines = task.blocks_of(more ? chunk + 1 : 0) * kInt4BlockBytes / 64;
                size_t t = 0;
                if constexpr (Tiles::tokens > 0 && planes == 1)
                    for (; t + Tiles::tokens <= tokens; t += Tiles::tokens)
                        Tiles::run(UnpackedRows{panel, next, 0, 0}, task.template tokens<1>(chunk, first + t),
                                   blocks, sums + t * R);
                for (; t < tokens; t += T) {
                    const size_t part = t / T, line = lines * part / parts;
                    const UnpackedRows rows{panel, next, line, lines * (part + 1) / parts - line};
                    int4_tokens<R, T>(rows, task.template tokens<planes>(chunk, first + t), blocks,
                                      tokens - t < T ? tokens - t : T, sums + t * R);
                }
            }
            for (size_t t = 0; t < tokens; ++t)
                for (size_t r = 0; r < R && row + r * Vec::width < last; ++r)
                    task.put(row + r * Vec::width, first + t, sums[t * R + r]);
        }
    }
    Tiles::stop();
}

template <bool exact, class Tiles>
BAIZE_TARGET void int4_product(const Product& what, size_t begin, size_t end, float* scratch) {
    if (what.tokens == 0) return;
    const Matrix& m = what.matrix;
    const Int4Task task{what, m.first + begin, m.first + end, m.int4_blocks()};
    if (what.tokens <= few_int4_tokens(kPlanes<exact>)) return few_int4<kPlanes<exact>>(task);
    many_int4<kPlanes<exact>, Tiles>(task, scratch);
}

constexpr size_t kInt4Scratch =
    (kChunkBlocks * sizeof(UnpackedRows::Block) + kInt4Tokens * kInt4Vectors * sizeof(F)) / sizeof(float);

template <bool exact, class Tiles = NoTiles>
constexpr ProductKernels kInt4Product{
    .prepare = prepare_int4<exact>, .run = int4_product<exact, Tiles>, .scratch = kInt4Scratch};

}  // namespace

}  // namespace baize
