// Products of one token, over the vector type `Vec` of the file that includes this.
//
// Every weight is read once and used once, so that the memory's speed bounds them; nothing but the token's
// row (8 KiB of float32 for 2048 columns) stays in the L1 cache. Rows are read in place, in
// Blocks::single_rows streams with prefetches into the L1 cache.
//
// R rows that are far apart (`stride` bytes) are computed together, so that each is one long stream to the
// processor's prefetcher, which follows several streams at once but confuses rows in one page. found[r]: the
// dot product of row w + r * stride and the token.
#pragma once

#include "csrc/generic/prefetch.h"
#include "csrc/product.h"

namespace baize {

namespace {

constexpr size_t kDistance = 1024;  // bytes by which prefetches run ahead of a row's stream

// Where the rows of a block begin.
struct Streams {
    const uint8_t* w;
    size_t stride;
};

template <Dtype D, size_t R>
BAIZE_TARGET void float_rows(const Streams& rows, const float* x, size_t columns, float* found) {
    const uint8_t* w = rows.w;
    const size_t stride = rows.stride;
    // Steps in a cache line.
    constexpr size_t line = 64 / (Vec::width * itemsize(D)) ? 64 / (Vec::width * itemsize(D)) : 1;
    F sums[R];
#pragma GCC unroll 16
    for (size_t r = 0; r < R; ++r) sums[r] = Vec::zero();
    const auto step = [&](size_t k) BAIZE_TARGET {
        const F value = Vec::load(x + k);
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r)
            sums[r] = Vec::fma(Vec::template load_as<D>(w + r * stride + k * itemsize(D)), value, sums[r]);
    };
    size_t k = 0;
    for (; k + line * Vec::width <= columns; k += line * Vec::width) {
        ask_streams<kDistance, 3, R>(w + k * itemsize(D), stride, 64);
#pragma GCC unroll 4
        for (size_t n = 0; n < line; ++n) step(k + n * Vec::width);
    }
    for (; k + Vec::width <= columns; k += Vec::width) step(k);
    if (k < columns) {
        const F value = Vec::load(x + k);
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r) {
            alignas(64) uint8_t tail[Vec::width * 4] = {};
            std::memcpy(tail, w + r * stride + k * itemsize(D), (columns - k) * itemsize(D));
            sums[r] = Vec::fma(Vec::template load_as<D>(tail), value, sums[r]);
        }
    }
    for (size_t r = 0; r < R; ++r) found[r] = Vec::sum(sums[r]);
}

template <size_t R>
BAIZE_TARGET void int8_rows(const Streams& rows, const Activations& token, size_t columns, float* found) {
    const uint8_t* w = rows.w;
    const size_t stride = rows.stride;
    const int16_t* x = token.codes;
    const float* factors = token.scales;
    constexpr size_t section = kSection;
    F sums[R];
#pragma GCC unroll 16
    for (size_t r = 0; r < R; ++r) sums[r] = Vec::zero();
    // Section s of the rows, of which `count` columns are not padding.
    const auto step = [&](const uint8_t* from, size_t from_stride, size_t s,
                          size_t count) BAIZE_TARGET __attribute__((always_inline)) {
        typename Vec::I totals[R];
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r) totals[r] = Vec::no_total();
#pragma GCC unroll 16
        for (size_t n = 0; n < count; n += Vec::shorts) {
            const auto value = Vec::load_shorts(x + s * section + n);
#pragma GCC unroll 16
            for (size_t r = 0; r < R; ++r)
                totals[r] = Vec::add_products(totals[r], Vec::load_codes(from + r * from_stride + n), value);
        }
        const F factor = Vec::all(factors[s]);
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r) sums[r] = Vec::fma(Vec::to_float(totals[r]), factor, sums[r]);
    };
    const size_t whole = columns / section;
    for (size_t s = 0; s < whole; ++s) {
        ask_streams<kDistance, 3, R>(w + s * section, stride, section);
        step(w + s * section, stride, s, section);
    }
    const size_t left = columns - whole * section;
    if (left && left % Vec::shorts == 0) {
        step(w + whole * section, stride, whole, left);
    } else if (left) {
        alignas(64) uint8_t tail[R * section] = {};
        for (size_t r = 0; r < R; ++r)
            std::memcpy(tail + r * section, w + r * stride + whole * section, left);
        step(tail, section, whole, section);
    }
    for (size_t r = 0; r < R; ++r) found[r] = Vec::sum(sums[r]);
}

// The outputs of rows row + n * step, n < R.
template <size_t R>
BAIZE_TARGET void single_rows(const Product& what, size_t row, size_t step) {
    const Matrix& m = what.matrix;
    const size_t row_bytes = m.row_bytes();
    const Streams rows{m.values + row * row_bytes, step * row_bytes};
    float found[R] = {};
    switch (m.kind) {
        case Kind::float32: float_rows<Dtype::float32, R>(rows, what.x.values, m.columns, found); break;
        case Kind::float16: float_rows<Dtype::float16, R>(rows, what.x.values, m.columns, found); break;
        case Kind::bfloat16: float_rows<Dtype::bfloat16, R>(rows, what.x.values, m.columns, found); break;
        case Kind::int8: int8_rows<R>(rows, what.x, m.columns, found); break;
        case Kind::int4: break;  // int4_product.h
    }
    for (size_t r = 0; r < R; ++r) {
        float& y = what.y[row + r * step];
        const float value = m.kind == Kind::int8 ? found[r] * m.row_scale(row + r * step) : found[r];
        y = what.add ? y + value : value;
    }
}

BAIZE_TARGET void single(const Product& what, size_t begin, size_t end) {
    const size_t step = (end - begin) / Blocks::single_rows;
    for (size_t row = begin; row < begin + step; ++row) single_rows<Blocks::single_rows>(what, row, step);
    for (size_t row = begin + step * Blocks::single_rows; row < end; ++row) single_rows<1>(what, row, 0);
}

}  // namespace

}  // namespace baize
