// Softmaxes of parts of a context, and their merging in order, over the vector type `Vec` of the file that
// includes this. Loads and stores bound the merging: two operations a value, on a row of 512 bytes of float32
// for 128 dimensions, which is in the L1 cache within a task and in the L2 cache after all splits.
#pragma once

#include "csrc/attention.h"
#include "csrc/generic/exponential.h"

namespace baize {

namespace {

// An unfinished softmax: the greatest score, the sum of the weights relative to it, and the sum of the values
// by these weights.
struct Softmax {
    float *greatest, *total, *values;  // a row's values are `width` floats, whole vectors
    size_t width;
};

// Merges row `s` of `from` into row `r` of `into`.
BAIZE_TARGET void merge_rows(const Softmax& into, size_t r, const Softmax& from, size_t s) {
    const float greatest = into.greatest[r] > from.greatest[s] ? into.greatest[r] : from.greatest[s];
    const float old = exponential(into.greatest[r] - greatest);
    const float added = exponential(from.greatest[s] - greatest);
    into.total[r] = into.total[r] * old + from.total[s] * added;
    into.greatest[r] = greatest;
    float *to = into.values + r * into.width, *add = from.values + s * from.width;
    for (size_t d = 0; d < into.width; d += Vec::width)
        Vec::store(to + d,
                   Vec::fma(Vec::load(add + d), Vec::all(added), Vec::mul(Vec::load(to + d), Vec::all(old))));
}

BAIZE_TARGET void finish_row(const Softmax& softmax, size_t r, size_t dim, float* out) {
    const float inverse = 1.0f / softmax.total[r];
    for (size_t d = 0; d < dim; ++d) out[d] = softmax.values[r * softmax.width + d] * inverse;
}

// The part of split `n` of a token's head.
Softmax part_of(const Attention& a, float* parts, size_t token, size_t head, size_t n) {
    float* part = parts + ((token * a.heads + head) * a.splits + n) * a.part_floats();
    return {part, part + 1, part + 16, a.row_width()};
}

// Merges the parts of a token's heads, into part 0 and a.out.
BAIZE_TARGET void merge(const Attention& a, size_t token, float* parts) {
    const size_t splits = (size_t(a.lens[token]) + kSplit - 1) / kSplit;
    for (size_t head = 0; head < a.heads; ++head) {
        const Softmax whole = part_of(a, parts, token, head, 0);
        for (size_t n = 1; n < splits; ++n) merge_rows(whole, 0, part_of(a, parts, token, head, n), 0);
        finish_row(whole, 0, a.dim, a.out + (token * a.heads + head) * a.dim);
    }
}

}  // namespace

}  // namespace baize
