// Activations as int4 products read them (int4_tile.h), over the vector type `Vec` of the file that
// includes this. Codes of 8 bits with a scale per group of two blocks; with `exact` of 16 bits, as two
// planes of bytes. A row is read once for its greatest magnitudes and once for its codes, a few operations
// a value, where the product has thousands.
#pragma once

#include "csrc/generic/section.h"

namespace baize {

namespace {

constexpr size_t kInt4Group = 2 * kInt4Block;  // columns of a token that share a scale
constexpr size_t kChunk = kInt4Chunk;  // columns whose weights are unpacked at a time
constexpr size_t kChunkBlocks = kChunk / kInt4Block, kChunkGroups = kChunk / kInt4Group;
static_assert(kChunkGroups == kInt4ChunkScales && kChunkBlocks * 4 == kInt4ChunkStarts);
constexpr float kByteLevels = 127.0f, kExactLevels = 127 * 256 + 127;  // both planes of a code fit in a byte

template <bool exact>
constexpr size_t kPlanes = exact ? 2 : 1;

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
        const size_t left = columns - begin;
        const Section<kInt4Group> found(x + begin, left < kInt4Group ? left : kInt4Group);
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

}  // namespace

}  // namespace baize
