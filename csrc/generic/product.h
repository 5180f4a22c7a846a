// Products with float32 activations or 16-bit codes, over the vector type `Vec` of the file that includes
// this.
//
// Every output has one vector accumulator over the columns in order, summed at the end by a fixed tree,
// whatever the number of tokens and the block it is computed in; so its bits do not depend on the batch.
// Integer codes are summed exactly within a section of columns, and the sum enters the accumulator times the
// section's factor.
//
// One token: product_single.h reads rows in place. Few: product_few.h does the same, in register blocks of
// four tokens. Many: product_panel.h keeps a panel of rows in the caches while all tokens are multiplied with
// it.
#pragma once

#include <algorithm>

#include "csrc/generic/activations.h"
#include "csrc/generic/product_few.h"
#include "csrc/generic/product_panel.h"
#include "csrc/generic/product_single.h"

namespace baize {

namespace {

// Weights of a task, roughly: small enough to share evenly, large enough to stream. Up to kStreamedTokens the
// memory's speed bounds a product, and longer streams are faster, as long as each thread gets kTasksEach: on
// two cores of Zen 5 a step of 1.26B with one token took 45, 24 and 18 ms (float16, int8, int4) by tasks of
// 128 KiB, and 39, 21 and 15 to 17 by 512 KiB.
constexpr size_t kTaskBytes = 128 << 10, kStreamedBytes = 512 << 10, kStreamedTokens = 8, kTasksEach = 4;
constexpr size_t kInt4TaskRows = 2 * kInt4Panel;  // or a multiple

// Rows of a matrix in one task.
size_t task_rows(const Matrix& matrix, size_t tokens, size_t threads) {
    const size_t unit = matrix.kind == Kind::int4 ? kInt4TaskRows
                        : tokens == 1             ? Blocks::single_rows
                                                  : Blocks::panel_rows;
    const size_t bytes = matrix.row_bytes() ? matrix.row_bytes() : 1;
    size_t rows = kTaskBytes / bytes;
    if (tokens <= kStreamedTokens)
        rows = std::max(rows, std::min(kStreamedBytes / bytes, matrix.rows / (kTasksEach * threads)));
    rows = rows / unit * unit;
    return rows < unit || tokens > kPanelTokens ? unit : rows;
}

// Rows are read in place where they are whole vectors that widen in a load.
template <Dtype D>
BAIZE_TARGET void float_panels(const Product& what, size_t begin, size_t end, float* scratch) {
    if ((D != Dtype::float16 || Vec::widens_halves) && whole_rows(what.matrix))
        return panels<FloatPanel<D, true>>(what, begin, end, scratch);
    panels<FloatPanel<D, false>>(what, begin, end, scratch);
}

BAIZE_TARGET void product(const Product& what, size_t begin, size_t end, float* scratch) {
    if (what.tokens == 1) return single(what, begin, end);
    if (what.tokens <= few_tokens(what.matrix)) return few(what, begin, end);
    switch (what.matrix.kind) {
        case Kind::float32: return float_panels<Dtype::float32>(what, begin, end, scratch);
        case Kind::float16: return float_panels<Dtype::float16>(what, begin, end, scratch);
        case Kind::bfloat16: return float_panels<Dtype::bfloat16>(what, begin, end, scratch);
        case Kind::int8: return panels<CodePanel>(what, begin, end, scratch);
        case Kind::int4: return;  // int4_product.h
    }
}

constexpr ProductKernels kProduct{.prepare = prepare, .run = product, .scratch = kPanelSums + kPanelFloats};

}  // namespace

}  // namespace baize
