// Register blocks of products with several tokens, over the vector type `Vec` of the file that includes this:
// the sums of R rows and T tokens stay in registers while both are read along the columns, so that a vector
// of a row serves T multiply-adds, and one of a token R.
#pragma once

#include "csrc/generic/prefetch.h"
#include "csrc/product.h"

namespace baize {

namespace {

// R rows of a matrix as register blocks read them. `prefetch` is always inlined: GCC drops calls of a
// function that does nothing but prefetch.

// Codes that were widened to a panel.
struct PanelCodes {
    static constexpr bool in_parts = false;  // whether a section may be read in part
    const int16_t* w;
    BAIZE_TARGET Vec::S load(size_t r, size_t s, size_t n) const {
        return Vec::load_shorts(w + r * kBlock + s * kSection + n * Vec::shorts);
    }
    template <size_t R>
    void prefetch(size_t) const {}
};

// R rows in the matrix itself, or of a panel of floats, `stride` bytes apart. While they are read, lines
// [begin, end) of the rows that lie `ahead` bytes on, which are read later, are prefetched.
template <Dtype D>
struct MatrixFloats {
    const uint8_t* w;
    size_t stride, ahead = 0, begin = 0, end = 0;
    static constexpr size_t step = Vec::width * itemsize(D);  // bytes of a row
    static constexpr size_t steps = step < 64 ? 64 / step : 1;  // of a cache line
    BAIZE_TARGET F load(size_t r, size_t n) const {
        return Vec::template load_as<D>(w + r * stride + n * step);
    }
    template <size_t R>
    BAIZE_TARGET __attribute__((always_inline)) void prefetch(size_t n) const {  // the line of step n
        const size_t line = n / steps;
        if (line < begin || line >= end) return;
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r) __builtin_prefetch(w + n * step + ahead + r * stride, 0, 2);
    }
};

// Bytes by which prefetches run ahead of rows that several tokens meet.
constexpr size_t kStreamDistance = 1536;

// The same of rows that are long streams.
template <Dtype D>
struct StreamFloats : MatrixFloats<D> {
    template <size_t R>
    BAIZE_TARGET __attribute__((always_inline)) void prefetch(size_t n) const {
        ask_streams<kStreamDistance, 0, R>(this->w + n * this->step, this->stride, 64);
    }
};

// Rows that are long streams, and met in one pass; or pass `pass` of `passes`, which prefetches its share of
// the lines that lie `ahead` bytes on. `left`: vectors behind the last whole section.
struct MatrixCodes {
    static constexpr bool in_parts = true;
    const uint8_t* w;
    size_t stride, ahead, pass, passes, left;
    BAIZE_TARGET Vec::S load(size_t r, size_t s, size_t n) const {
        return Vec::load_codes(w + r * stride + s * kSection + n * Vec::shorts);
    }
    template <size_t R>
    BAIZE_TARGET __attribute__((always_inline)) void prefetch(size_t s) const {
        if (passes == 1) return ask_streams<kStreamDistance, 0, R>(w + s * kSection, stride, kSection);
        for (size_t r = 0; r < R; ++r)
            for (size_t n = 0; n < kSection; n += 64)
                if (((s * kSection + n) / 64 & (passes - 1)) == pass)
                    __builtin_prefetch(w + r * stride + s * kSection + n + ahead, 0, 2);
    }
};

// The sums of register blocks: that of row r and token t is at[t * stride + r]. fresh: they begin at zero,
// whatever is there.
template <size_t stride>
struct Sums {
    F* at;
    bool fresh = false;

    // While the first T lines of rows are computed, prefetches the sums of the R rows behind, a token a line.
    template <size_t R, size_t T>
    BAIZE_TARGET __attribute__((always_inline)) void prefetch(size_t line) const {
        if constexpr (stride > R)
            if (line < T)
#pragma GCC unroll 16
                for (size_t r = 0; r < R; ++r) __builtin_prefetch(at + line * stride + R + r, 1, 3);
    }
};

// Adds the products of R rows and T tokens, which are kBlock apart, over `steps` vectors to `sums`.
template <size_t R, size_t T, class Rows, size_t stride>
BAIZE_TARGET inline void float_block(const Rows& w, const float* x, size_t steps, Sums<stride> sums) {
    F own[T][R];
#pragma GCC unroll 16
    for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r) own[t][r] = sums.fresh ? Vec::zero() : sums.at[t * stride + r];
    const auto step = [&](size_t n) BAIZE_TARGET {
        F rows[R];
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r) rows[r] = w.load(r, n);
#pragma GCC unroll 16
        for (size_t t = 0; t < T; ++t) {
            const F value = Vec::load(x + t * kBlock + n * Vec::width);
#pragma GCC unroll 16
            for (size_t r = 0; r < R; ++r) own[t][r] = Vec::fma(rows[r], value, own[t][r]);
        }
    };
    size_t n = 0;
    for (; n + Rows::steps <= steps; n += Rows::steps) {
        w.template prefetch<R>(n);
        sums.template prefetch<R, T>(n / Rows::steps);
#pragma GCC unroll 4
        for (size_t k = 0; k < Rows::steps; ++k) step(n + k);
    }
    for (; n < steps; ++n) step(n);
#pragma GCC unroll 16
    for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r) sums.at[t * stride + r] = own[t][r];
}

// The same with codes, over whole sections and what is left behind them; token t's factor in section s is
// factors[t * kBlock / kSection + s].
// The sums stay in memory: sections are long, so that more rows pay better than held sums.
template <size_t R, size_t T, class Rows, size_t stride>
BAIZE_TARGET inline void code_block(const Rows& w, const int16_t* x, const float* factors, size_t sections,
                                    Sums<stride> sums) {
    constexpr size_t vectors = kSection / Vec::shorts;
    // Section s, of whose vectors `count` are not padding.
    const auto step = [&](size_t s, size_t count) BAIZE_TARGET __attribute__((always_inline)) {
        w.template prefetch<R>(s);
        typename Vec::I totals[T][R];
        if (count < vectors)
            for (auto& of_token : totals)
                for (auto& total : of_token) total = Vec::no_total();
#pragma GCC unroll 16
        for (size_t n = 0; n < count; ++n) {
            typename Vec::S rows[R];
#pragma GCC unroll 16
            for (size_t r = 0; r < R; ++r) rows[r] = w.load(r, s, n);
#pragma GCC unroll 16
            for (size_t t = 0; t < T; ++t) {
                const auto value = Vec::load_shorts(x + t * kBlock + s * kSection + n * Vec::shorts);
#pragma GCC unroll 16
                for (size_t r = 0; r < R; ++r)
                    totals[t][r] = n == 0 && count == vectors
                                       ? Vec::products(rows[r], value)
                                       : Vec::add_products(totals[t][r], rows[r], value);
            }
        }
#pragma GCC unroll 16
        for (size_t t = 0; t < T; ++t) {
            const F factor = Vec::all(factors[t * (kBlock / kSection) + s]);
#pragma GCC unroll 16
            for (size_t r = 0; r < R; ++r) {
                F& sum = sums.at[t * stride + r];
                sum = Vec::fma(Vec::to_float(totals[t][r]), factor, sum);
            }
        }
    };
    for (size_t s = 0; s < sections; ++s) step(s, vectors);
    if constexpr (Rows::in_parts)
        if (w.left) step(sections, w.left);
}

}  // namespace

}  // namespace baize
