// The tile of keys and values that attention has at hand, and a task's memory, over the vector type `Vec` of
// the file that includes this. A tile is widened once to float32, for all rows of the task: reading the cache
// bounds the gather for one query a sequence, transposing the keys for a prompt; attention.h says where the
// tile stays.
#pragma once

#include <cstring>

#include "csrc/attention.h"
#include "csrc/generic/softmax.h"

namespace baize {

namespace {

constexpr size_t kKeys = 32;

// A task's memory: the rows of its first key head, then those of the next.
struct TaskRows {
    size_t width;  // floats of a row of q or values
    size_t of_head, heads;
    // q (rows, width), times the scale; of each head, a tile's keys (width, kKeys), transposed, and values
    // (kKeys, width); of each row, kKeys scores, which become weights, and the factor for its earlier sums
    float *q, *keys, *values, *scores, *kept;
    size_t* limits;  // the tokens that each row of a head may see
    Softmax now, before;
};

size_t attention_scratch(const Attention& a, size_t of_head, size_t heads) {
    const size_t room = (of_head * heads + 15) / 16 * 16, width = a.row_width();
    return heads * kKeys * width * 2 + room * (3 * width + kKeys + 5 + 2);
}

TaskRows carve(const Attention& a, size_t of_head, size_t heads, float* memory) {
    const size_t width = a.row_width(), room = (of_head * heads + 15) / 16 * 16;
    const auto take = [&](size_t floats) {
        float* taken = memory;
        memory += floats;
        return taken;
    };
    TaskRows made;
    made.width = width;
    made.of_head = of_head;
    made.heads = heads;
    made.keys = take(heads * kKeys * width);
    made.values = take(heads * kKeys * width);
    made.q = take(room * width);
    made.now = {nullptr, nullptr, take(room * width), width};
    made.before = {nullptr, nullptr, take(room * width), width};
    made.scores = take(room * kKeys);
    made.now.greatest = take(room);
    made.now.total = take(room);
    made.before.greatest = take(room);
    made.before.total = take(room);
    made.kept = take(room);
    made.limits = reinterpret_cast<size_t*>(take(2 * room));
    return made;
}

// The byte offsets of up to kKeys tokens of a sequence in a cache; the task's heads follow one another from
// there.
struct KeyTile {
    size_t count = 0, at[kKeys];

    void find(const Attention& a, const int32_t* table, size_t begin, size_t end, size_t kv_head) {
        count = begin < end ? (end - begin < kKeys ? end - begin : kKeys) : 0;
        const size_t bytes = a.head_bytes();
        size_t number = begin / a.block, within = begin % a.block;
        for (size_t j = 0; j < count; ++j) {
            at[j] = ((size_t(table[number]) * a.block + within) * a.kv_heads + kv_head) * bytes;
            if (++within == a.block) within = 0, ++number;
        }
    }
    // Prefetches share `part` of `parts` of the tokens, `bytes` of each.
    BAIZE_TARGET void prefetch(const Attention& a, size_t part, size_t parts, size_t bytes) const {
        for (size_t j = count * part / parts; j < count * (part + 1) / parts; ++j)
            for (size_t line = 0; line < bytes; line += 64) {
                __builtin_prefetch(a.keys + at[j] + line, 0, 2);
                __builtin_prefetch(a.values + at[j] + line, 0, 2);
            }
    }
};

// A vector of `count` numbers, fewer than fill it, then zeros.
template <Dtype D>
BAIZE_TARGET inline F load_some(const uint8_t* from, size_t count) {
    alignas(64) uint8_t padded[Vec::width * itemsize(D)] = {};
    std::memcpy(padded, from, count * itemsize(D));
    return Vec::template load_as<D>(padded);
}

// to[n * kKeys + k] = block[k][n]
BAIZE_TARGET inline void put_turned(F (&block)[Vec::width], float* to) {
    Vec::transpose(block);
#pragma GCC unroll 16
    for (size_t n = 0; n < Vec::width; ++n) Vec::store(to + n * kKeys, block[n]);
}

// Widens the keys and values of a tile, for all heads of the task. A token's heads are adjacent in memory,
// but tokens may be whole pages apart, and then the caches keep only a few of them.
template <Dtype D>
BAIZE_TARGET void gather_as(const Attention& a, const KeyTile& tile, const TaskRows& rows) {
    constexpr size_t W = Vec::width, size = itemsize(D);
    const size_t dim = a.dim, whole = dim / W * W, width = rows.width, count = tile.count, heads = rows.heads;
    for (size_t j = 0; j < count; j += W) {
        const uint8_t* from[W];  // past the end, the last token again: its scores there are not used
        for (size_t n = 0; n < W; ++n) from[n] = a.keys + tile.at[j + n < count ? j + n : count - 1];
        for (size_t head = 0; head < heads; ++head) {
            float* to = rows.keys + head * width * kKeys + j;
            F block[W];
            for (size_t d = 0; d < whole; d += W) {
#pragma GCC unroll 16
                for (size_t n = 0; n < W; ++n) block[n] = Vec::template load_as<D>(from[n] + d * size);
                put_turned(block, to + d * kKeys);
            }
            if (whole < dim) {
                for (size_t n = 0; n < W; ++n) block[n] = load_some<D>(from[n] + whole * size, dim - whole);
                put_turned(block, to + whole * kKeys);
            }
            for (size_t n = 0; n < W; ++n) from[n] += dim * size;
        }
    }
    for (size_t j = 0; j < count; ++j) {
        const uint8_t* from = a.values + tile.at[j];
        for (size_t head = 0; head < heads; ++head, from += dim * size) {
            float* to = rows.values + (head * kKeys + j) * width;
            for (size_t d = 0; d < whole; d += W)
                Vec::store(to + d, Vec::template load_as<D>(from + d * size));
            for (size_t d = whole; d < width; d += W)
                Vec::store(to + d, d < dim ? load_some<D>(from + d * size, dim - d) : Vec::zero());
        }
    }
}

BAIZE_TARGET void gather(const Attention& a, const KeyTile& tile, const TaskRows& rows) {
    switch (a.cache) {
        case Dtype::float32: return gather_as<Dtype::float32>(a, tile, rows);
        case Dtype::float16: return gather_as<Dtype::float16>(a, tile, rows);
        default: return gather_as<Dtype::bfloat16>(a, tile, rows);
    }
}

}  // namespace

}  // namespace baize
