// Prefetches of a product's operands.
#pragma once

#include <cstddef>
#include <cstdint>

namespace baize {

namespace {

// What the streams of a product read next: R rows, `stride` bytes apart, `bytes` of each, `distance` bytes
// behind `w`. `locality`: 3 prefetches into all caches; 0 into the L1 cache alone, so that rows do not drive
// the activations of several tokens out of the L2 cache.
template <size_t distance, int locality, size_t R>
BAIZE_TARGET __attribute__((always_inline)) inline void ask_streams(const uint8_t* w, size_t stride,
                                                                    size_t bytes) {
#pragma GCC unroll 16
    for (size_t r = 0; r < R; ++r)
        for (size_t n = 0; n < bytes; n += 64) __builtin_prefetch(w + r * stride + n + distance, 0, locality);
}

// Prefetches share `part` of `parts` of the next T tokens' block; otherwise the first rows to use it would
// wait for each line.
template <size_t T, size_t block, class X>
BAIZE_TARGET inline void ask_tokens(const X* x, size_t part, size_t parts) {
    const size_t lines = T * block * sizeof(X) / 64, end = lines * (part + 1) / parts;
    for (size_t line = lines * part / parts; line < end; ++line)
        __builtin_prefetch(reinterpret_cast<const uint8_t*>(x) + line * 64, 0, 3);
}

// The next block of a panel's rows, prefetched while the current one is computed: each register block
// prefetches bytes [begin, end) of its rows, so that all are requested by the time the tokens are done.
struct NextBlock {
    const uint8_t* from;
    size_t stride, bytes, tokens, begin, end;

    void take(size_t token, size_t count) {  // the share of these tokens
        const size_t lines = (bytes + 63) / 64;
        begin = lines * token / tokens * 64;
        end = lines * (token + count) / tokens * 64;
    }
    template <size_t R>
    BAIZE_TARGET __attribute__((always_inline)) void prefetch(size_t row) const {
        for (size_t at = begin; at < end; at += 64)
#pragma GCC unroll 8
            for (size_t r = 0; r < R; ++r) __builtin_prefetch(from + (row + r) * stride + at, 0, 2);
    }
};

}  // namespace

}  // namespace baize
