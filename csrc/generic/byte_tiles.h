// Products with activations of 8 bits for any number of tokens, by tiles, over the vector type `Vec` of the
// file that includes this: for processors that multiply bytes into 32-bit sums. A token's bits do not depend
// on the other tokens here either, but they differ from those of product.h and byte_panels.h.
//
// Sixteen tokens form a group, one per lane of a vector. The totals of sixteen rows and a group over a
// section of columns are a tile, computed by an `Engine`. Integer sums are exact and a lane depends only on
// its token and row, so the bits depend neither on the number of tokens nor on the engine. The instructions
// need one unsigned operand, so `bias` is added to the weights; to undo it, a total begins at minus the bias
// times the sum of the token's codes.
//
// Layout of activations: for group g and section s, at (g * sections + s): the codes, token by token in runs
// of four columns (section * kGroupTokens bytes); the totals' initial values; the tokens' scales.
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
constexpr size_t kTileScales = kTileRows * kByteFactors;  // floats, for the scales of int4 rows
// Bytes of activations that stay in a core's cache for all rows.
constexpr size_t kChunkBytes = 1 << 20;
constexpr size_t kTileGroups = 256;  // the most groups of a chunk
constexpr size_t kTileSums = kTileGroups * kTileRows * Vec::width;  // floats
// Of the rows and their scales.
constexpr size_t kTileFloats = kTileScales + kTileRows * kTileStride / sizeof(float);

constexpr int bias_of(Kind kind) { return kind == Kind::int8 ? 128 : 8; }

template <Kind K>
size_t sections_in(size_t columns) {
    return (columns + section_of(K) - 1) / section_of(K);
}

// A row's sum plus its total in a section times the tokens' scales (and for int4 the row's, at `of_row`).
template <Kind K>
BAIZE_TARGET inline F with_total(F sum, typename Vec::I total, F scale, const float* of_row) {
    F value = Vec::to_float(total);
    if (K == Kind::int4) value = Vec::mul(value, Vec::all(*of_row));
    return Vec::fma(value, scale, sum);
}

// The first section of a block: a panel's rows (unsigned codes, kTileStride apart) and for int4 their scales
// (kByteFactors apart); a group's codes, initial totals and scales.
struct TileAt {
    const uint8_t* w;
    const float* row_scales;
    const int8_t* x;
    const int32_t* beginnings;
    const float* scales;
};

// `count` rows or columns from `begin` on.
struct Range {
    size_t begin, count;
};

// Part of a matrix as unsigned codes, with the scales of int4 rows; rows and columns beyond it become zero.
template <Kind K>
BAIZE_TARGET void fill_tile(const Matrix& m, const Range& rows, const Range& columns, uint8_t* panel,
                            float* scales) {
    constexpr size_t section = section_of(K);
    const size_t count = columns.count, sections = sections_in<K>(count), stride = m.row_bytes();
    for (size_t r = 0; r < kTileRows; ++r) {
        uint8_t* to = panel + r * kTileStride;
        if (r >= rows.count) {
            std::memset(to, 0, sections * section);
            for (size_t s = 0; s < kByteFactors; ++s) scales[r * kByteFactors + s] = 0.0f;
            continue;
        }
        const uint8_t* from = m.values + (rows.begin + r) * stride + m.bytes_of(columns.begin);
        if constexpr (K == Kind::int4) {
            for (size_t s = 0; s < sections; ++s) Vec::biased4(from + s * (kGroup / 2), to + s * section);
            widen_as<Dtype::float16>(m.group_scales(rows.begin + r, columns.begin), sections,
                                     scales + r * kByteFactors);
        } else {
            size_t k = 0;
            for (; k + Vec::bytes <= count; k += Vec::bytes) Vec::biased8(from + k, to + k);
            for (; k < count; ++k) to[k] = uint8_t(from[k] + 128);
            std::memset(to + count, 0, sections * section - count);  // the activations there are zero
        }
    }
}

// Writes, or adds, a group's sums of `rows` rows from `row` on to the outputs of its tokens from `token` on.
BAIZE_TARGET void put_tile(const Product& what, size_t row, size_t rows, size_t token, const F* sums) {
    F turned[kTileRows];
    for (size_t r = 0; r < kTileRows; ++r)
        turned[r] = what.matrix.kind == Kind::int8 && r < rows
                        ? Vec::mul(sums[r], Vec::all(what.matrix.row_scale(row + r)))
                        : sums[r];
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

template <class Engine, Kind K>
BAIZE_TARGET void tiles(const Product& what, size_t begin, size_t end, float* scratch) {
    constexpr size_t section = section_of(K), of_block = kByteBlock / section;
    const Matrix& m = what.matrix;
    const size_t sections = sections_in<K>(m.columns);
    const size_t groups = (what.tokens + kGroupTokens - 1) / kGroupTokens;
    const size_t fitting = kChunkBytes / (sections * section * kGroupTokens);
    const size_t at_once = fitting < 1 ? 1 : fitting > kTileGroups ? kTileGroups : fitting;
    F* sums = reinterpret_cast<F*>(scratch);
    float* row_scales = scratch + kTileSums;
    uint8_t* panel = reinterpret_cast<uint8_t*>(row_scales + kTileScales);
    Engine::start();
    for (size_t first = 0; first < groups; first += at_once) {
        const size_t count = groups - first < at_once ? groups - first : at_once;
        for (size_t row = begin; row < end; row += kTileRows) {
            const size_t rows = end - row < kTileRows ? end - row : kTileRows;
            for (size_t n = 0; n < count * kTileRows; ++n) sums[n] = Vec::zero();
            for (size_t s = 0; s < sections; s += of_block) {
                const size_t column = s * section, left = m.columns - column;
                const size_t some = sections - s < of_block ? sections - s : of_block;
                fill_tile<K>(m, {row, rows}, {column, left < kByteBlock ? left : kByteBlock}, panel,
                             row_scales);
                for (size_t n = 0; n < count; ++n) {
                    const size_t place = (first + n) * sections + s;
                    const TileAt at{
                        panel, row_scales,
                        reinterpret_cast<const int8_t*>(what.x.bytes) + place * section * kGroupTokens,
                        what.x.offsets + place * kGroupTokens, what.x.scales + place * kGroupTokens};
                    Engine::template run<K>(at, some, sums + n * kTileRows);
                }
            }
            for (size_t n = 0; n < count; ++n)
                put_tile(what, row, rows, (first + n) * kGroupTokens, sums + n * kTileRows);
        }
    }
    Engine::stop();
}

template <class Engine>
BAIZE_TARGET void product_by_tiles(const Product& what, size_t begin, size_t end, float* scratch) {
    if (what.matrix.kind == Kind::int8) return tiles<Engine, Kind::int8>(what, begin, end, scratch);
    tiles<Engine, Kind::int4>(what, begin, end, scratch);
}

// x as bytes, with a scale per section of columns. Padding of the last section is zero; the last token clears
// the rest of its group.
template <Kind K>
BAIZE_TARGET void encode_for_tiles(const TokenRow& row, const ActivationMemory& to) {
    const auto [x, columns, token, tokens] = row;
    constexpr size_t section = section_of(K);
    const size_t sections = sections_in<K>(columns), lane = token % kGroupTokens;
    // The first lane after those that this call fills.
    const size_t behind = token + 1 == tokens ? kGroupTokens : lane + 1;
    for (size_t s = 0; s < sections; ++s) {
        const size_t begin = s * section, place = token / kGroupTokens * sections + s;
        const Section<section> found(x + begin, columns - begin < section ? columns - begin : section);
        alignas(64) int8_t codes[section];
        int32_t sum = 0;
        if (found.finite)
            sum = Vec::template encode_signed<section>(found.from, Vec::all(found.inverse(127.0f)), codes);
        else
            std::memset(codes, 0, section);
        uint8_t* bytes = to.bytes + place * section * kGroupTokens;
        for (size_t k = 0; k < section; k += 4) {
            std::memcpy(bytes + k * kGroupTokens + lane * 4, codes + k, 4);
            std::memset(bytes + k * kGroupTokens + (lane + 1) * 4, 0, (behind - lane - 1) * 4);
        }
        int32_t* beginnings = to.offsets + place * kGroupTokens;
        float* scales = to.scales + place * kGroupTokens;
        beginnings[lane] = -bias_of(K) * sum;
        scales[lane] = found.scale(127.0f);
        for (size_t t = lane + 1; t < behind; ++t) beginnings[t] = 0, scales[t] = 0.0f;
    }
}

BAIZE_TARGET void prepare_for_tiles(Kind weights, const TokenRow& row, const ActivationMemory& to) {
    if (weights == Kind::int8) return encode_for_tiles<Kind::int8>(row, to);
    encode_for_tiles<Kind::int4>(row, to);
}

template <class Engine>
constexpr ProductKernels kByteTiles{
    .prepare = prepare_for_tiles, .run = product_by_tiles<Engine>, .scratch = kTileSums + kTileFloats};

}  // namespace

}  // namespace baize
