// Sums in a tree: of the products of segments of columns, and of what ranks have summed so. The tree adds
// neighbours, then neighbouring sums, and so on; so bits do not depend on who sums adjacent segments.
#include <algorithm>

#include "csrc/arena.h"
#include "csrc/plan.h"

namespace baize {

namespace {

constexpr size_t kPiece = 1024;  // sums of a task of AddSums; 4 KiB for each two ranks stay in the L1 cache

// Sums of all tokens and some rows.
struct Block {
    float* at;
    size_t stride;  // from a token to the next
};

void add_block(const Block& from, const Block& to, size_t tokens, size_t rows) {
    for (size_t t = 0; t < tokens; ++t)
        for (size_t r = 0; r < rows; ++r) to.at[t * to.stride + r] += from.at[t * from.stride + r];
}

}  // namespace

// A task computes all segments of its rows, so that only the sum leaves its core's cache. Segments that are
// neighbours are added where the first was computed, and two sums of equally many as soon as there are two:
// for 8 segments at most two blocks besides the output are kept.
void Plan::append(const SegmentSums& op) {
    const size_t segments = op.segments, tokens = op.tokens, width = op.matrix.rows / segments;
    const Input in{op.x, tokens, op.int8_activations};
    const Room each = prepare(in, op.matrix, segments);
    const ProductKernels& by = kernels(in, op.matrix.kind);
    const size_t rows = by_.task_rows(op.matrix.part(0, width), tokens, threads_);
    size_t blocks = 0;
    while (size_t(4) << blocks <= segments) ++blocks;
    scratch_ = std::max(scratch_, by.scratch + blocks * tokens * rows);
    add((width + rows - 1) / rows, [=, &by](Arena& arena, size_t task, float* scratch) {
        const size_t begin = task * rows, count = std::min(rows, width - begin);
        const auto block = [&](size_t n) -> Block {
            if (n == 0) return {op.out + begin, width};
            return {scratch + by.scratch + (n - 1) * tokens * rows, count};
        };
        const auto multiply = [&](size_t segment, const Block& to, bool add) {
            const size_t first = segment * width + begin;
            const Product what{
                .matrix = op.matrix.part(first, first + count),
                .x = arena.activations(segment, each),
                .tokens = tokens,
                .y = to.at,
                .ldy = to.stride,
                .add = add,
            };
            by.run(what, 0, count, scratch);
        };
        for (size_t s = 0, held = 0; s < segments; s += 2, ++held) {
            multiply(s, block(held), false);
            if (s + 1 < segments) multiply(s + 1, block(held), true);
            for (size_t pair = s / 2; pair % 2; pair /= 2, --held)
                add_block(block(held), block(held - 1), tokens, count);
        }
    });
}

void Plan::append(const AddSums& op) {
    const size_t size = op.tokens * op.width;
    scratch_ = std::max(scratch_, op.ranks / 2 * kPiece);
    add((size + kPiece - 1) / kPiece, [=](Arena&, size_t task, float* scratch) {
        const size_t begin = task * kPiece, count = std::min(kPiece, size - begin);
        const float* from = op.sums + begin;
        for (size_t ranks = op.ranks, stride = size; ranks > 1; ranks /= 2, stride = kPiece) {
            for (size_t r = 0; r < ranks / 2; ++r)
                for (size_t n = 0; n < count; ++n)
                    scratch[r * kPiece + n] = from[2 * r * stride + n] + from[(2 * r + 1) * stride + n];
            from = scratch;
        }
        for (size_t n = 0; n < count; ++n) op.out[begin + n] += from[n];
    });
}

}  // namespace baize
