// Activations as generic/product.h reads them, over the vector type `Vec` of the file that includes this. A
// section of a row is read for its greatest magnitude, and again from the L1 cache for its codes; encoding a
// row is a few operations a value, where the product has thousands.
#pragma once

#include "csrc/generic/section.h"

namespace baize {

namespace {

// x as int16, with a scale per section of columns. Columns that pad the last section are zero.
BAIZE_TARGET void encode(const TokenRow& row, const ActivationMemory& to) {
    const auto [x, columns, token, tokens] = row;
    int16_t* codes = to.codes;
    constexpr size_t per_block = kBlock / kSection;
    for (size_t begin = 0, n = 0; begin < columns; begin += kSection, ++n) {
        const Section<kSection> found(x + begin, columns - begin < kSection ? columns - begin : kSection);
        const size_t at = (begin / kBlock * tokens + token) * kBlock + begin % kBlock;
        if (found.finite)
            Vec::encode(found.from, Vec::all(found.inverse(32767.0f)), codes + at);
        else
            std::memset(codes + at, 0, kSection * sizeof(int16_t));
        to.scales[(n / per_block * tokens + token) * per_block + n % per_block] = found.scale(32767.0f);
    }
}

BAIZE_TARGET void prepare(Kind weights, const TokenRow& row, const ActivationMemory& to) {
    if (weights == Kind::int8) return encode(row, to);
    for (size_t begin = 0; begin < row.columns; begin += kBlock) {
        const size_t count = row.columns - begin < kBlock ? row.columns - begin : kBlock;
        float* block = to.values + (begin / kBlock * row.tokens + row.token) * kBlock;
        std::memcpy(block, row.x + begin, count * sizeof(float));
        for (size_t k = count; k < kBlock && k % 16; ++k) block[k] = 0.0f;  // to the end of the widest vector
    }
}

}  // namespace

}  // namespace baize
