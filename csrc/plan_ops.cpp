#include <algorithm>
#include <stdexcept>
#include <string>

#include "csrc/arena.h"
#include "csrc/plan.h"

namespace baize {

namespace {

void check_place(const char* what, int64_t found, size_t count) {
    if (found < 0 || size_t(found) >= count)
        throw std::out_of_range(std::string(what) + " " + std::to_string(found) + ", wanted 0 to " +
                                std::to_string(count - 1));
}

void check_beside(const std::vector<Matrix>& matrices) {
    for (const Matrix& matrix : matrices)
        if (matrix.columns != matrices[0].columns ||
            (matrix.kind != matrices[0].kind && (matrix.quantised() || matrices[0].quantised())))
            throw std::invalid_argument(
                "matrices side by side must have as many columns, and one kind where they are quantised");
}

}  // namespace

void Plan::append(const Embed& op) {
    add(op.tokens, [=](Arena&, size_t t, float*) {
        const int64_t id = op.ids[t];
        if (id < 0 || size_t(id) >= op.rows)
            throw std::out_of_range("token id " + std::to_string(id) + ", wanted 0 to " +
                                    std::to_string(op.rows - 1));
        by_.elements.widen(op.weight.from(size_t(id) * op.hidden), op.hidden, op.out + t * op.hidden);
    });
}

void Plan::append(const QkvRopeStore& op) {
    const size_t width = (op.heads + 2 * op.kv_heads) * op.dim, half = op.dim / 2;
    const size_t row_bytes = op.kv_heads * op.dim * itemsize(op.cache);
    check_beside(op.matrices);
    const Input in{op.x, op.tokens, op.int8_activations, op.norm, op.eps};
    prepare(in, op.matrices[0]);
    products(in, op.matrices, {nullptr, width, false});
    scratch_ = std::max(scratch_, op.kv_heads * op.dim);
    add(op.tokens, [=](Arena& arena, size_t t, float* turned) {
        check_place("position", op.positions[t], op.turns);
        check_place("slot", op.slots[t], op.places);
        const size_t position = size_t(op.positions[t]), slot = size_t(op.slots[t]);
        const float* row = arena.parts.data() + t * width;
        const float *c = op.cos + position * half, *s = op.sin + position * half;
        for (size_t head = 0; head < op.heads + op.kv_heads; ++head) {
            const float* from = row + head * op.dim;
            float* to =
                head < op.heads ? op.q + (t * op.heads + head) * op.dim : turned + (head - op.heads) * op.dim;
            for (size_t d = 0; d < half; ++d) {
                to[d] = from[d] * c[d] - from[half + d] * s[d];
                to[half + d] = from[half + d] * c[d] + from[d] * s[d];
            }
        }
        const float* value = row + (op.heads + op.kv_heads) * op.dim;
        by_.elements.narrow(turned, op.kv_heads * op.dim, {op.keys + slot * row_bytes, op.cache});
        by_.elements.narrow(value, op.kv_heads * op.dim, {op.values + slot * row_bytes, op.cache});
    });
}

namespace {

// Throws unless queries [first, last) belong to sequence `n`, its context holds them, and its tokens [from,
// to) are in blocks of the cache.
void check_sequence(const Attention& a, size_t n, size_t first, size_t last, size_t from, size_t to) {
    const int64_t begin = a.starts[n];
    const int64_t end = a.starts[n + 1];
    const int64_t length = a.lens[n];
    const int64_t most = int64_t(a.table_stride * a.block);
    const bool one_each = a.sequences == a.tokens;
    if (begin < 0 || begin > int64_t(first) || end < int64_t(last) || end > int64_t(a.tokens) ||
        (one_each && end - begin != 1))
        throw std::out_of_range("sequence " + std::to_string(n) + " has queries " + std::to_string(begin) +
                                " to " + std::to_string(end) + ", wanted all of " + std::to_string(a.tokens) +
                                " in order" + (one_each ? ", one each" : ""));
    if (length < end - begin || length > most)
        throw std::out_of_range("context " + std::to_string(length) + ", wanted " +
                                std::to_string(end - begin) + " to " + std::to_string(most));
    for (size_t block = from / a.block; block * a.block < std::min(size_t(length), to); ++block)
        check_place("block", a.tables[n * a.table_stride + block], a.blocks);
}

}  // namespace

void Plan::append(const Attention& op) {
    if (op.tokens == 0) return;
    Attention a = op;
    a.splits = (a.table_stride * a.block + kSplit - 1) / kSplit;
    if (a.sequences == a.tokens) return append_each(a);
    append_prompts(a);
}

// The splits of a context are tasks of their own.
void Plan::append_each(const Attention& a) {
    const size_t group = a.heads / a.kv_heads;
    // Key heads that are adjacent in memory form one task, as long as every thread gets two tasks (with short
    // contexts).
    const size_t together = std::clamp<size_t>(a.tokens * a.kv_heads / (2 * threads_), 1, 8);
    const size_t pieces = (a.kv_heads + together - 1) / together;
    const bool split = a.splits > 1;
    scratch_ = std::max(scratch_, by_.attention.scratch(a, group, together));
    if (split) parts_ = std::max(parts_, a.tokens * a.heads * a.splits * a.part_floats());
    add(a.tokens * a.splits * pieces, [=](Arena& arena, size_t task, float* scratch) {
        const size_t n = task / pieces % a.splits;
        const size_t t = task / pieces / a.splits;
        const size_t head = task % pieces * together;
        check_sequence(a, t, t, t + 1, n * kSplit, (n + 1) * kSplit);
        const Queries what{t, t, t + 1, head, std::min(together, a.kv_heads - head), n, n + 1};
        if (n * kSplit < size_t(a.lens[t]))
            by_.attention.attend(a, what, split ? arena.parts.data() : nullptr, scratch);
    });
    if (split)
        add(a.tokens, [=](Arena& arena, size_t t, float*) { by_.attention.merge(a, t, arena.parts.data()); });
}

// Queries of a sequence up to which reading the cache bounds a task, so that it has adjacent key heads, as
// for one query. Four queries of 32 heads took 1.25 times as long as one at a context of 2048 on two cores of
// Zen 5, and 1.7 times by one key head a task.
constexpr size_t kFewQueries = 8;

// A task is a block of queries, which may span sequences; the last blocks come first, because they have the
// most to read.
void Plan::append_prompts(const Attention& a) {
    const size_t group = a.heads / a.kv_heads;
    const size_t queries = std::min(std::max<size_t>(1, 64 / group), a.tokens);
    const size_t blocks = (a.tokens + queries - 1) / queries;
    const bool few = a.tokens <= kFewQueries * a.sequences;
    const size_t together = few ? std::clamp<size_t>(blocks * a.kv_heads / (2 * threads_), 1, 8) : 1;
    const size_t pieces = (a.kv_heads + together - 1) / together;
    scratch_ = std::max(scratch_, by_.attention.scratch(a, queries * group, together));
    add(blocks * pieces, [=](Arena&, size_t task, float* scratch) {
        const size_t block = blocks - 1 - task / pieces, end = std::min((block + 1) * queries, a.tokens);
        const size_t head = task % pieces * together;
        size_t sequence = 0;
        for (size_t first = block * queries; first < end;) {
            while (sequence + 1 < a.sequences && a.starts[sequence + 1] <= int64_t(first)) ++sequence;
            const size_t last = std::clamp<size_t>(size_t(a.starts[sequence + 1]), first + 1, end);
            check_sequence(a, sequence, first, last, 0, a.table_stride * a.block);
            const size_t heads = std::min(together, a.kv_heads - head);
            by_.attention.attend(a, {sequence, first, last, head, heads, 0, a.splits}, nullptr, scratch);
            first = last;
        }
    });
}

void Plan::append(const LinearAdd& op) {
    const Input in{op.x, op.tokens, op.int8_activations};
    prepare(in, op.matrix);
    products(in, {op.matrix}, {op.out, op.matrix.rows, true});
}

void Plan::append(const GateUp& op) {
    const std::vector<Matrix>& matrices = op.matrices;
    check_beside(matrices);
    size_t width = 0;
    for (const Matrix& matrix : matrices) width += matrix.rows;
    const Input in{op.x, op.tokens, op.int8_activations, op.norm, op.eps};
    prepare(in, matrices[0]);
    // A task computes gate and up of the same rows, which are still in its core's cache when they are
    // multiplied.
    const ProductKernels& by = kernels(in, matrices[0].kind);
    const size_t inner = width / 2, own = by.scratch;
    const size_t rows = by_.task_rows(matrices[0], op.tokens, threads_);
    scratch_ = std::max(scratch_, own + 2 * rows * op.tokens);
    add((inner + rows - 1) / rows, [=](Arena& arena, size_t task, float* scratch) {
        const size_t begin = task * rows, count = std::min(rows, inner - begin);
        float* both = scratch + own;  // (tokens, 2, count)
        for (size_t half = 0; half < 2; ++half) {
            // Rows, counted through all matrices.
            const size_t first = half * inner + begin, last = first + count;
            size_t before = 0;
            for (const Matrix& matrix : op.matrices) {
                const size_t from = std::max(first, before), to = std::min(last, before + matrix.rows);
                if (from < to) {
                    const Product what{
                        .matrix = matrix.part(from - before, to - before),
                        .x = arena.activations(),
                        .tokens = op.tokens,
                        .y = both + half * count + (from - first),
                        .ldy = 2 * count,
                        .add = false,
                    };
                    kernels(in, matrix.kind).run(what, 0, to - from, scratch);
                }
                before += matrix.rows;
            }
        }
        for (size_t t = 0; t < op.tokens; ++t)
            by_.silu_mul(both + 2 * count * t, both + 2 * count * t + count, count,
                         op.out + t * inner + begin);
    });
}

void Plan::append(const Head& op) {
    const size_t vocabulary = op.matrix.rows, blocks = (vocabulary + kBestBlock - 1) / kBestBlock;
    const Input in{op.x, op.tokens, false, op.norm, op.eps};
    prepare(in, op.matrix);
    products(in, {op.matrix}, {op.out, vocabulary, false});
    if (!op.best) return;
    constexpr size_t piece = 128;  // blocks per task
    const size_t pieces = (blocks + piece - 1) / piece;
    add(op.tokens * pieces, [=, logits = op.out, best = op.best](Arena&, size_t task, float*) {
        const size_t t = task / pieces, first = task % pieces * piece;
        const float* row = logits + t * vocabulary;
        for (size_t b = first; b < std::min(first + piece, blocks); ++b) {
            const size_t begin = b * kBestBlock, end = std::min(begin + kBestBlock, vocabulary);
            size_t found = begin;
            bool finite = true;
            for (size_t v = begin; v < end; ++v) {
                finite = finite && row[v] - row[v] == 0.0f;
                if (row[v] > row[found]) found = v;
            }
            best[t * blocks + b] = finite ? int32_t(found) : -1;
        }
    });
}

void Plan::append(const Sample& op) {
    scratch_ = std::max(scratch_, sample_scratch(op));
    add(op.rows, [=](Arena&, size_t row, float* scratch) { sample(op, by_.sample, row, scratch); });
}

void Plan::append(const Advance& op) {
    add(op.rows, [=](Arena&, size_t row, float*) { advance(op, row); });
}

}  // namespace baize
