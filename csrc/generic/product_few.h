// Products of int8 rows with the 16-bit codes of a few tokens, over the vector type `Vec` of the file that
// includes this: straight from the matrix, in streams as for one token (product_single.h), in register blocks
// of four tokens.
//
// The rows of a register block (four of 2048 int8: 8 KiB) come from memory for the first four tokens and from
// the L1 cache for the others; the tokens' codes (16 of 2048: 64 KiB) stay in the L2 cache. The memory's
// speed bounds the fewest tokens; for more it is the multiplier and the codes' widening, which each register
// block repeats.
#pragma once

#include "csrc/generic/register_block.h"

namespace baize {

namespace {

// The outputs of rows row + r * step, r < R, and T tokens from `token` on.
template <size_t R, size_t T>
BAIZE_TARGET void few_block(const Product& what, size_t row, size_t step, size_t token) {
    const Matrix& m = what.matrix;
    const size_t stride = m.row_bytes();
    const size_t pass = token / 4;
    const size_t passes = what.tokens > 12 ? 4 : what.tokens > 4 ? 2 : 1;
    F sums[T * R + Vec::width];
    for (F& sum : sums) sum = Vec::zero();
    for (size_t begin = 0; begin < m.columns; begin += kBlock) {
        const size_t count = m.columns - begin < kBlock ? m.columns - begin : kBlock;
        const uint8_t* w = m.values + row * stride + begin;
        const size_t place = begin / kBlock * what.tokens + token;
        const size_t sections = (count + kSection - 1) / kSection;
        const int16_t* x = what.x.codes + place * kBlock;
        const float* x_factors = what.x.scales + place * (kBlock / kSection);
        const MatrixCodes rows{w, step * stride, stride, pass, passes};
        code_block<R, T>(rows, x, x_factors, sections, Sums<R>{sums});
    }
    alignas(64) float found[T * R + Vec::width];
    for (size_t n = 0; n < T * R; n += Vec::width) Vec::store(found + n, Vec::sums(sums + n));
    for (size_t t = 0; t < T; ++t)
        for (size_t r = 0; r < R; ++r) {
            float& y = what.y[(token + t) * what.ldy + row + r * step];
            const float value = found[t * R + r] * m.row_scale(row + r * step);
            y = what.add ? y + value : value;
        }
}

template <size_t R, size_t T>
BAIZE_TARGET void few_rows(const Product& what, size_t row, size_t step) {
    size_t token = 0;
    for (; token + T <= what.tokens; token += T) few_block<R, T>(what, row, step, token);
    const size_t left = what.tokens - token;
    if (left == 3) few_block<R, 3>(what, row, step, token);
    if (left == 2) few_block<R, 2>(what, row, step, token);
    if (left == 1) few_block<R, 1>(what, row, step, token);
}

BAIZE_TARGET void few(const Product& what, size_t begin, size_t end) {
    constexpr size_t rows = Blocks::int8_rows;
    const size_t step = (end - begin) / rows;
    for (size_t row = begin; row < begin + step; ++row) few_rows<rows, 4>(what, row, step);
    for (size_t row = begin + step * rows; row < end; ++row) few_rows<1, 4>(what, row, 0);
}

// Whether a product is one of these: rows of whole sections, as reading them in place requires, and no more
// tokens than it pays for.
bool is_few(const Product& what) {
    return what.matrix.kind == Kind::int8 && what.matrix.columns % kSection == 0 &&
           what.tokens <= Blocks::few_of_int8;
}

}  // namespace

}  // namespace baize
