// Register blocks of products with several tokens, over the vector type `Vec` of the file that includes this:
// the sums of R rows and T tokens stay in registers while both are read along the columns, so that a vector
// of a row serves T multiply-adds, and one of a token R.
#pragma once

#include "csrc/product.h"

namespace baize {

namespace {

// R rows of a matrix as register blocks read them: codes that were widened to a panel.
struct PanelCodes {
    const int16_t* w;
    template <Kind K>
    BAIZE_TARGET Vec::S load(size_t r, size_t s, size_t n) const {
        return Vec::load_shorts(w + r * kBlock + s * section_of(K) + n * Vec::shorts);
    }
    template <Kind K, size_t R>
    void prefetch(size_t) const {}
};

// R rows in the matrix itself (or a panel of floats), `stride` bytes apart. What is read next lies `ahead`
// bytes on; pass `pass` of `passes` over the rows prefetches its share of those lines (`ahead` 0: nothing is
// prefetched).
template <Dtype D>
struct MatrixFloats {
    const uint8_t* w;
    size_t stride, ahead = 0, pass = 0, passes = 1;
    BAIZE_TARGET F load(size_t r, size_t n) const {
        return Vec::template load_as<D>(w + r * stride + n * Vec::width * itemsize(D));
    }
    template <size_t R>
    BAIZE_TARGET void prefetch(size_t n) const {
        constexpr size_t bytes = Vec::width * itemsize(D);
        const size_t line = n * bytes / 64;
        if (ahead && n * bytes % 64 < bytes && (line & (passes - 1)) == pass)
            for (size_t r = 0; r < R; ++r) __builtin_prefetch(w + r * stride + n * bytes + ahead, 0, 2);
    }
};

struct MatrixCodes {
    const uint8_t* w;
    size_t stride, ahead, pass, passes;
    template <Kind K>
    BAIZE_TARGET Vec::S load(size_t r, size_t s, size_t n) const {
        constexpr size_t bytes = K == Kind::int4 ? kGroup / 2 : section_of(K);
        const uint8_t* from = w + r * stride + s * bytes;
        return K == Kind::int4 ? Vec::nibbles(from, n) : Vec::load_codes(from + n * Vec::shorts);
    }
    template <Kind K, size_t R>
    BAIZE_TARGET void prefetch(size_t s) const {
        constexpr size_t bytes = K == Kind::int4 ? kGroup / 2 : section_of(K);
        if (s * bytes % 64 == 0)
            for (size_t r = 0; r < R; ++r)
                for (size_t n = 0; n < bytes; n += 64)
                    if (((s * bytes + n) / 64 & (passes - 1)) == pass)
                        __builtin_prefetch(w + r * stride + s * bytes + n + ahead, 0, 2);
    }
};

// The sums of register blocks: that of row r and token t is at[t * stride + r].
template <size_t stride>
struct Sums {
    F* at;
};

// The factor of row r, token t and section s is at[r * of_row + t * of_token + s].
template <size_t of_row, size_t of_token>
struct Factors {
    const float* at;
};

// Adds the products of R rows and T tokens, which are kBlock apart, over `steps` vectors to `sums`.
template <size_t R, size_t T, class Rows, size_t stride>
BAIZE_TARGET inline void float_block(const Rows& w, const float* x, size_t steps, Sums<stride> sums) {
    F own[T][R];
#pragma GCC unroll 16
    for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r) own[t][r] = sums.at[t * stride + r];
    for (size_t n = 0; n < steps; ++n) {
        w.template prefetch<R>(n);
        F rows[R];
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r) rows[r] = w.load(r, n);
#pragma GCC unroll 16
        for (size_t t = 0; t < T; ++t) {
            const F value = Vec::load(x + t * kBlock + n * Vec::width);
#pragma GCC unroll 16
            for (size_t r = 0; r < R; ++r) own[t][r] = Vec::fma(rows[r], value, own[t][r]);
        }
    }
#pragma GCC unroll 16
    for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r) sums.at[t * stride + r] = own[t][r];
}

// The same with codes, over sections.
template <Kind K, size_t R, size_t T, class Rows, size_t of_row, size_t of_token, size_t stride>
BAIZE_TARGET inline void code_block(const Rows& w, const int16_t* x, Factors<of_row, of_token> factors,
                                    size_t sections, Sums<stride> sums) {
    constexpr size_t section = section_of(K);
    // int8's sections are long, so there more rows pay better.
    constexpr bool held = K == Kind::int4 && Blocks::holds_int4_sums;
    F own[T][R];  // the sums, if they are held in registers; else they stay in memory
    if (held)
#pragma GCC unroll 16
        for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 16
            for (size_t r = 0; r < R; ++r) own[t][r] = sums.at[t * stride + r];
    for (size_t s = 0; s < sections; ++s) {
        w.template prefetch<K, R>(s);
        typename Vec::I totals[T][R];
#pragma GCC unroll 16
        for (size_t n = 0; n < section / Vec::shorts; ++n) {
            typename Vec::S rows[R];
#pragma GCC unroll 16
            for (size_t r = 0; r < R; ++r) rows[r] = w.template load<K>(r, s, n);
#pragma GCC unroll 16
            for (size_t t = 0; t < T; ++t) {
                const auto value = Vec::load_shorts(x + t * kBlock + s * section + n * Vec::shorts);
#pragma GCC unroll 16
                for (size_t r = 0; r < R; ++r)
                    totals[t][r] = n == 0 ? Vec::products(rows[r], value)
                                          : Vec::add_products(totals[t][r], rows[r], value);
            }
        }
#pragma GCC unroll 16
        for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 16
            for (size_t r = 0; r < R; ++r) {
                F& sum = held ? own[t][r] : sums.at[t * stride + r];
                sum = Vec::fma(Vec::to_float(totals[t][r]),
                               Vec::all(factors.at[r * of_row + t * of_token + s]), sum);
            }
    }
    if (held)
#pragma GCC unroll 16
        for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 16
            for (size_t r = 0; r < R; ++r) sums.at[t * stride + r] = own[t][r];
}

// Rows of a register block of codes.
constexpr size_t code_rows(Kind kind) { return kind == Kind::int4 ? Blocks::int4_rows : Blocks::int8_rows; }

constexpr size_t kSections = kBlock / kGroup;  // int4 sections in a block

// both[(t * rows + r) * S + s] = the rows' factors times the tokens', S of each.
template <size_t S>
BAIZE_TARGET inline void multiply_factors(const float* of_rows, size_t rows, const float* of_tokens,
                                          size_t tokens, float* both) {
    for (size_t t = 0; t < tokens; ++t)
        for (size_t r = 0; r < rows; ++r) {
            const float *row = of_rows + r * S, *token = of_tokens + t * S;
            float* to = both + (t * rows + r) * S;
            size_t s = 0;
            for (; s + Vec::width <= S; s += Vec::width)
                Vec::store(to + s, Vec::mul(Vec::load(row + s), Vec::load(token + s)));
            for (; s < S; ++s) to[s] = row[s] * token[s];
        }
}

}  // namespace

}  // namespace baize
