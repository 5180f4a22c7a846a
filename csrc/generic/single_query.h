// Attention of one query with its own key head, over the vector type `Vec` of the file that includes this: a
// tile's keys are turned in registers and its values read in place, where attention.h keeps a tile in memory
// for several rows. The operations of a lane, and so its bits, are those of attention.h. Reading the keys and
// values bounds it.
#pragma once

#include "csrc/generic/key_tile.h"

namespace baize {

namespace {

// scores[k]: the query, dim floats, times key k of the tile; keys past its end are its last.
template <Dtype D>
BAIZE_TARGET void score_query(const uint8_t* const* keys, const float* q, size_t dim, float* scores) {
    constexpr size_t W = Vec::width, groups = kKeys / W;
    F sums[groups];
    for (F& sum : sums) sum = Vec::zero();
    for (size_t d = 0; d < dim; d += W) {
        const size_t count = dim - d < W ? dim - d : W;
#pragma GCC unroll 2
        for (size_t g = 0; g < groups; ++g) {
            F block[W];
            if (count == W)
#pragma GCC unroll 16
                for (size_t n = 0; n < W; ++n)
                    block[n] = Vec::template load_as<D>(keys[g * W + n] + d * itemsize(D));
            else
                for (size_t n = 0; n < W; ++n)
                    block[n] = load_some<D>(keys[g * W + n] + d * itemsize(D), count);
            Vec::transpose(block);
            if (count == W)
#pragma GCC unroll 16
                for (size_t n = 0; n < W; ++n) sums[g] = Vec::fma(block[n], Vec::all(q[d + n]), sums[g]);
            else
                for (size_t n = 0; n < count; ++n) sums[g] = Vec::fma(block[n], Vec::all(q[d + n]), sums[g]);
        }
    }
    for (size_t g = 0; g < groups; ++g) Vec::store(scores + g * W, sums[g]);
}

// V vectors of out, from the first of the tile's values at `offset` bytes of each: out * kept + the sum of
// weights[n] * value n over n < count.
template <Dtype D, size_t V>
BAIZE_TARGET inline void mix_vectors(const uint8_t* const* values, size_t offset, const float* weights,
                                     size_t count, float kept, float* out) {
    F sums[V];
#pragma GCC unroll 8
    for (size_t v = 0; v < V; ++v) sums[v] = Vec::mul(Vec::load(out + v * Vec::width), Vec::all(kept));
    for (size_t n = 0; n < count; ++n) {
        const F weight = Vec::all(weights[n]);
#pragma GCC unroll 8
        for (size_t v = 0; v < V; ++v)
            sums[v] = Vec::fma(Vec::template load_as<D>(values[n] + offset + v * Vec::width * itemsize(D)),
                               weight, sums[v]);
    }
#pragma GCC unroll 8
    for (size_t v = 0; v < V; ++v) Vec::store(out + v * Vec::width, sums[v]);
}

template <Dtype D>
BAIZE_TARGET void mix_values(const uint8_t* const* values, size_t dim, const float* weights, size_t count,
                             float kept, float* out) {
    constexpr size_t W = Vec::width;
    size_t d = 0;
    for (; d + 8 * W <= dim; d += 8 * W)
        mix_vectors<D, 8>(values, d * itemsize(D), weights, count, kept, out + d);
    for (; d + W <= dim; d += W) mix_vectors<D, 1>(values, d * itemsize(D), weights, count, kept, out + d);
    if (d == dim) return;
    F sum = Vec::mul(Vec::load(out + d), Vec::all(kept));
    for (size_t n = 0; n < count; ++n)
        sum = Vec::fma(load_some<D>(values[n] + d * itemsize(D), dim - d), Vec::all(weights[n]), sum);
    Vec::store(out + d, sum);
}

// Where the keys or the values of a tile are, of the task's key head `head`.
struct TileRows {
    const uint8_t* at[kKeys];
    TileRows(const Attention& a, const uint8_t* cache, const KeyTile& tile, size_t head) {
        for (size_t j = 0; j < kKeys; ++j)
            at[j] = cache + tile.at[j < tile.count ? j : tile.count - 1] + head * a.head_bytes();
    }
};

BAIZE_TARGET void score_query(const Attention& a, const KeyTile& tile, size_t head, const TaskRows& rows) {
    const TileRows keys(a, a.keys, tile, head);
    const float* q = rows.q + head * rows.width;
    float* scores = rows.scores + head * kKeys;
    switch (a.cache) {
        case Dtype::float32: return score_query<Dtype::float32>(keys.at, q, a.dim, scores);
        case Dtype::float16: return score_query<Dtype::float16>(keys.at, q, a.dim, scores);
        default: return score_query<Dtype::bfloat16>(keys.at, q, a.dim, scores);
    }
}

// With the tile's first `seen` values.
BAIZE_TARGET void mix_values(const Attention& a, const KeyTile& tile, size_t head, size_t seen,
                             const TaskRows& rows) {
    const TileRows values(a, a.values, tile, head);
    const float *weights = rows.scores + head * kKeys, kept = rows.kept[head];
    float* out = rows.now.values + head * rows.width;
    switch (a.cache) {
        case Dtype::float32: return mix_values<Dtype::float32>(values.at, a.dim, weights, seen, kept, out);
        case Dtype::float16: return mix_values<Dtype::float16>(values.at, a.dim, weights, seen, kept, out);
        default: return mix_values<Dtype::bfloat16>(values.at, a.dim, weights, seen, kept, out);
    }
}

}  // namespace

}  // namespace baize
