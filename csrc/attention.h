// The operands of attention over a paged cache.
#pragma once

#include "csrc/element.h"

namespace baize {

// Tokens of a context that attention processes at a time, with every instruction set.
constexpr size_t kSplit = 512;

// Queries (T, heads, dim) of sequences whose keys and values are in a cache of blocks (block, kv_heads, dim)
// of type `cache`. As many sequences as queries means that each has one.
struct Attention {
    const float* q;
    const uint8_t *keys, *values;
    Dtype cache;
    const int32_t *tables, *starts, *lens;
    size_t tokens, sequences, table_stride, heads, kv_heads, dim;
    size_t block, blocks;  // tokens per block; blocks in the cache
    float scale;
    float* out;
    size_t splits;  // the most splits of a context

    // Floats: dim rounded up to two of the widest vectors.
    size_t row_width() const { return (dim + 31) / 32 * 32; }
    // Greatest score, sum of weights, then weighted values.
    size_t part_floats() const { return 16 + row_width(); }
    size_t head_bytes() const { return dim * itemsize(cache); }
};

// Queries [begin, end) of one sequence with splits [first, last) of its context, for the heads that share the
// `kv_heads` key heads from `kv_head` on.
struct Queries {
    size_t sequence, begin, end, kv_head, kv_heads, first, last;
};

struct AttentionKernels {
    // If `parts` is null the result goes to a.out; else the unfinished softmax goes to part `first` of each
    // row's a.splits parts (see part_floats). Scratch memory is aligned to 64 bytes.
    void (*attend)(const Attention& a, const Queries& what, float* parts, float* scratch);
    // Merges the parts of a token's heads into a.out.
    void (*merge)(const Attention& a, size_t token, float* parts);
    // In floats; of_head: rows per key head.
    size_t (*scratch)(const Attention& a, size_t of_head, size_t kv_heads);
};

}  // namespace baize
