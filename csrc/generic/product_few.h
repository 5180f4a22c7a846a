// Products of a few tokens, over the vector type `Vec` of the file that includes this: straight from the
// matrix, in streams as for one token (product_single.h), in register blocks of all tokens or of four.
//
// Floats, up to four tokens, and int8, up to Blocks::few_at_once: every row comes from memory once, in long
// streams with prefetches, and the memory's speed bounds them where it is less than about half of what a core
// multiplies. int8, more: the rows of a register block (four of 2048: 8 KiB) come from memory for the first
// four tokens and from the L1 cache for the others; the tokens' codes (16 of 2048: 64 KiB) stay in the L2
// cache. It is the multiplier that bounds these, and the codes' widening, which each register block repeats.
//
// A step of 1.26B with four tokens of one sequence of 512 took 67 ms with float16 and 40 with int8, on two
// cores of Zen 5 where one token takes 57 and 35; 74 and 44 where only the processor prefetched floats, and
// codes by rows.
#pragma once

#include "csrc/generic/elements.h"
#include "csrc/generic/prefetch.h"
#include "csrc/generic/register_block.h"

namespace baize {

namespace {

// The outputs of rows row + r * step, r < R, and T tokens from `token` on.
template <Kind K, size_t R, size_t T>
BAIZE_TARGET void few_block(const Product& what, size_t row, size_t step, size_t token) {
    const Matrix& m = what.matrix;
    const size_t stride = m.row_bytes();
    F sums[T * R + Vec::width];
    for (F& sum : sums) sum = Vec::zero();
    for (size_t begin = 0; begin < m.columns; begin += kBlock) {
        const size_t count = m.columns - begin < kBlock ? m.columns - begin : kBlock;
        const uint8_t* w = m.values + row * stride + m.bytes_of(begin);
        const size_t place = begin / kBlock * what.tokens + token;
        if constexpr (K == Kind::int8) {
            constexpr size_t per_block = kBlock / kSection;
            const size_t sections = count / kSection, left = count % kSection / Vec::shorts;
            const int16_t* x = what.x.codes + place * kBlock;
            const float* x_factors = what.x.scales + place * per_block;
            const size_t passes = what.tokens == T ? 1 : what.tokens > 12 ? 4 : 2;
            const MatrixCodes rows{w, step * stride, stride, token / 4, passes, left};
            code_block<R, T>(rows, x, x_factors, sections, Sums<R>{sums});
        } else {
            const StreamFloats<dtype_of(K)> rows{{w, step * stride}};
            float_block<R, T>(rows, what.x.values + place * kBlock, count / Vec::width, Sums<R>{sums});
        }
    }
    alignas(64) float found[T * R + Vec::width];
    for (size_t n = 0; n < T * R; n += Vec::width) Vec::store(found + n, Vec::sums(sums + n));
    for (size_t t = 0; t < T; ++t)
        for (size_t r = 0; r < R; ++r) {
            float& y = what.y[(token + t) * what.ldy + row + r * step];
            const float value =
                K == Kind::int8 ? found[t * R + r] * m.row_scale(row + r * step) : found[t * R + r];
            y = what.add ? y + value : value;
        }
}

// In register blocks of T tokens; what is left is less than four of them.
template <Kind K, size_t R, size_t T>
BAIZE_TARGET void few_rows(const Product& what, size_t row, size_t step) {
    size_t token = 0;
    for (; token + T <= what.tokens; token += T) few_block<K, R, T>(what, row, step, token);
    if constexpr (T == 4) {
        const size_t left = what.tokens - token;
        if (left == 3) few_block<K, R, 3>(what, row, step, token);
        if (left == 2) few_block<K, R, 2>(what, row, step, token);
        if (left == 1) few_block<K, R, 1>(what, row, step, token);
    }
}

template <Kind K, size_t R, size_t T>
BAIZE_TARGET void few_streams(const Product& what, size_t begin, size_t end) {
    const size_t step = (end - begin) / R;
    for (size_t row = begin; row < begin + step; ++row) few_rows<K, R, T>(what, row, step);
    for (size_t row = begin + step * R; row < end; ++row) few_rows<K, 1, T>(what, row, 0);
}

template <Kind K>
BAIZE_TARGET void few(const Product& what, size_t begin, size_t end) {
    constexpr size_t R = K == Kind::int8 ? Blocks::int8_rows : Blocks::float_rows;
    if constexpr (K == Kind::int8 && Blocks::few_at_once == 8) switch (what.tokens) {
            case 5: return few_streams<K, R, 5>(what, begin, end);
            case 6: return few_streams<K, R, 6>(what, begin, end);
            case 7: return few_streams<K, R - 1, 7>(what, begin, end);
            case 8: return few_streams<K, R - 1, 8>(what, begin, end);
        }
    few_streams<K, R, 4>(what, begin, end);
}

// Whether a matrix's rows are whole vectors, as reading them in place requires.
bool whole_rows(const Matrix& m) {
    return m.columns % (m.kind == Kind::int8 ? Vec::shorts : Vec::width) == 0;
}

// The most tokens for which a matrix is read in streams: every four tokens read it once more.
size_t few_tokens(const Matrix& m) {
    if (!whole_rows(m)) return 1;
    return m.kind == Kind::int8 ? Blocks::few_of_int8 : 4;
}

BAIZE_TARGET void few(const Product& what, size_t begin, size_t end) {
    switch (what.matrix.kind) {
        case Kind::float32: return few<Kind::float32>(what, begin, end);
        case Kind::float16: return few<Kind::float16>(what, begin, end);
        case Kind::bfloat16: return few<Kind::bfloat16>(what, begin, end);
        case Kind::int8: return few<Kind::int8>(what, begin, end);
        case Kind::int4: return;  // int4_product.h
    }
}

}  // namespace

}  // namespace baize
