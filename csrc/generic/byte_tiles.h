// Products of int8 weights with activations of 8 bits for any number of tokens, by tiles, over the vector
// type `Vec` of the file that includes this: for processors that multiply bytes into 32-bit sums. A token's
// bits do not depend on the other tokens here either, but they differ from those of product.h and
// byte_panels.h.
//
// Sixteen tokens form a group, one per lane of a vector. The totals of sixteen rows and a group over a
// section of columns are a tile, computed by an `Engine`. Integer sums are exact and a lane depends only on
// its token and row, so the bits depend neither on the number of tokens nor on the engine. The instructions
// need one unsigned operand, so `bias` is added to the weights; to undo it, a total begins at minus the bias
// times the sum of the token's codes.
//
// Layout of activations: for group g and section s, at (g * sections + s): the codes, token by token in runs
// of four columns (kSection * kGroupTokens bytes); the totals' initial values; the tokens' scales.
//
// Sixteen rows of a block of columns (17 KiB) stay in the L1 cache while every group of a chunk passes. The
// chunk, kChunkBytes of activations, passes once for every sixteen rows of the task: from an L2 cache of 2
// MiB (the Xeon with AMX), in part from the L3 cache where L2 has 1 MiB (Zen 5).
#pragma once

#include "csrc/generic/elements.h"
#include "csrc/generic/section.h"

namespace baize {

namespace {

constexpr size_t kTileRows = 16;
static_assert(Blocks::panel_rows % kTileRows == 0, "tasks are whole tiles");
static_assert(kGroupTokens == Vec::width, "a group's tokens are a vector's lanes");
// Bytes between a panel's rows: at a power of two they evict each other.
constexpr size_t kTileStride = kByteBlock + 64;
// Bytes of activations that stay in a core's cache for all rows.
constexpr size_t kChunkBytes = 1 << 20;
constexpr size_t kTileGroups = 256;  // the most groups of a chunk
constexpr size_t kTileSums = kTileGroups * kTileRows * Vec::width;  // floats
constexpr size_t kTileFloats = kTileRows * kTileStride / sizeof(float);  // of the rows

constexpr int kTileBias = 128;

constexpr size_t sections_in(size_t columns) { return (columns + kSection - 1) / kSection; }

// The first section of a block: a panel's rows (unsigned codes, kTileStride apart); a group's codes, initial
// totals and scales.
struct TileAt {
    const uint8_t* w;
    const int8_t* x;
    const int32_t* beginnings;
    const float* scales;
};

// `count` rows or columns from `begin` on.
struct Range {
    size_t begin, count;
};

// Part of a matrix as unsigned codes; rows and columns beyond it become zero.
BAIZE_TARGET void fill_tile(const Matrix& m, const Range& rows, const Range& columns, uint8_t* panel) {
    const size_t count = columns.count, padded = sections_in(count) * kSection;
    for (size_t r = 0; r < kTileRows; ++r) {
        uint8_t* to = panel + r * kTileStride;
        if (r >= rows.count) {
            std::memset(to, 0, padded);
            continue;
        }
        const uint8_t* from = m.values + (rows.begin + r) * m.row_bytes() + columns.begin;
        size_t k = 0;
        for (; k + Vec::bytes <= count; k += Vec::bytes) Vec::biased8(from + k, to + k);
        for (; k < count; ++k) to[k] = uint8_t(from[k] + kTileBias);
        std::memset(to + count, 0, padded - count);  // the activations there are zero
    }
}

// Writes, or adds, a group's sums of `rows` rows from `row` on to the outputs of its tokens from `token` on.
BAIZE_TARGET void put_tile(const Product& what, size_t row, size_t rows, size_t token, const F* sums) {
    F turned[kTileRows];
    for (size_t r = 0; r < kTileRows; ++r)
        turned[r] = r < rows ? Vec::mul(sums[r], Vec::all(what.matrix.row_scale(row + r))) : sums[r];
    Vec::transpose(turned);
    const size_t tokens = what.tokens - token < kGroupTokens ? what.tokens - token : kGroupTokens;
    for (size_t t = 0; t < tokens; ++t) {
        float* y = what.y + (token + t) * what.ldy + row;
        if (rows == kTileRows) {
            Vec::store(y, what.add ? Vec::add(Vec::load(y), turned[t]) : turned[t]);
            continue;
        }
        alignas(64) float each[kTileRows];
        Vec::store(each, turned[t]);
        for (size_t r = 0; r < rows; ++r) y[r] = what.add ? y[r] + each[r] : each[r];
    }
}

template <class Engine>
BAIZE_TARGET void product_by_tiles(const Product& what, size_t begin, size_t end, float* scratch) {
    constexpr size_t of_block = kByteBlock / kSection;
    const Matrix& m = what.matrix;
    const size_t sections = sections_in(m.columns);
    const size_t groups = (what.tokens + kGroupTokens - 1) / kGroupTokens;
    const size_t fitting = kChunkBytes / (sections * kSection * kGroupTokens);
    const size_t at_once = fitting < 1 ? 1 : fitting > kTileGroups ? kTileGroups : fitting;
    F* sums = reinterpret_cast<F*>(scratch);
    uint8_t* panel = reinterpret_cast<uint8_t*>(scratch + kTileSums);
    Engine::start();
    for (size_t first = 0; first < groups; first += at_once) {
        const size_t count = groups - first < at_once ? groups - first : at_once;
        for (size_t row = begin; row < end; row += kTileRows) {
            const size_t rows = end - row < kTileRows ? end - row : kTileRows;
            for (size_t n = 0; n < count * kTileRows; ++n) sums[n] = Vec::zero();
            for (size_t s = 0; s < sections; s += of_block) {
                const size_t column = s * kSection, left = m.columns - column;
                const size_t some = sections - s < of_block ? sections - s : of_block;
                fill_tile(m, {row, rows}, {column, left < kByteBlock ? left : kByteBlock}, panel);
                for (size_t n = 0; n < count; ++n) {
                    const size_t place = (first + n) * sections + s;
                    const TileAt at{
                        .w = panel,
                        .x = reinterpret_cast<const int8_t*>(what.x.bytes) + place * kSection * kGroupTokens,
                        .beginnings = what.x.starts + place * kGroupTokens,
                        .scales = what.x.scales + place * kGroupTokens,
                    };
                    Engine::run(at, some, sums + n * kTileRows);
                }
            }
            for (size_t n = 0; n < count; ++n)
                put_tile(what, row, rows, (first + n) * kGroupTokens, sums + n * kTileRows);
        }
    }
    Engine::stop();
}

// x as bytes, with a scale per section of columns. Padding of the last section is zero; the last token clears
// the rest of its group.
BAIZE_TARGET void prepare_for_tiles(Kind, const TokenRow& row, const ActivationMemory& to) {
    const auto [x, columns, token, tokens] = row;
    const size_t sections = sections_in(columns), lane = token % kGroupTokens;
    // The first lane after those that this call fills.
    const size_t behind = token + 1 == tokens ? kGroupTokens : lane + 1;
    for (size_t s = 0; s < sections; ++s) {
        const size_t begin = s * kSection, place = token / kGroupTokens * sections + s;
        const Section<kSection> found(x + begin, columns - begin < kSection ? columns - begin : kSection);
        alignas(64) int8_t codes[kSection];
        int32_t sum = 0;
        if (found.finite)
            sum = Vec::template encode_signed<kSection>(found.from, Vec::all(found.inverse(127.0f)), codes);
        else
            std::memset(codes, 0, kSection);
        uint8_t* bytes = to.bytes + place * kSection * kGroupTokens;
        for (size_t k = 0; k < kSection; k += 4) {
            std::memcpy(bytes + k * kGroupTokens + lane * 4, codes + k, 4);
            std::memset(bytes + k * kGroupTokens + (lane + 1) * 4, 0, (behind - lane - 1) * 4);
        }
        int32_t* beginnings = to.starts + place * kGroupTokens;
        float* scales = to.scales + place * kGroupTokens;
        beginnings[lane] = -kTileBias * sum;
        scales[lane] = found.scale(127.0f);
        for (size_t t = lane + 1; t < behind; ++t) beginnings[t] = 0, scales[t] = 0.0f;
    }
}

template <class Engine>
constexpr ProductKernels kByteTiles{
    .prepare = prepare_for_tiles, .run = product_by_tiles<Engine>, .scratch = kTileSums + kTileFloats};

}  // namespace

}  // namespace baize
