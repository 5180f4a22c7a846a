#include "csrc/plan.h"

#include <algorithm>
#include <exception>
#include <stdexcept>

#include "csrc/arena.h"
#include "csrc/float_state.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace baize {

namespace {

int this_thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

}  // namespace

Plan::Plan(const Implementation& by, size_t threads) : by_(by), threads_(threads) {
    if (const char* reason = by.request()) throw std::runtime_error(reason);
}

void Plan::add(size_t tasks, Work work) { ops_.push_back(std::make_unique<Op>(tasks, std::move(work))); }

Plan::Room Plan::room(const Input& in, const Matrix& matrix) const {
    const size_t columns = matrix.columns, tokens = in.tokens;
    const size_t padded = (columns + kBlock - 1) / kBlock * kBlock * tokens;
    if (matrix.kind == Kind::int4) {
        const size_t blocks = (columns + kInt4Chunk - 1) / kInt4Chunk * tokens;
        return {
            .scales = blocks * kInt4ChunkScales,
            .starts = blocks * kInt4ChunkStarts,
            .bytes = blocks * kInt4ChunkBytes,
        };
    }
    if (!matrix.quantised()) return {.values = padded};
    // The widest vector may begin at the last scale.
    if (!in.bytes) return {.codes = padded, .scales = padded / kSection + 16};
    const size_t groups = (tokens + kGroupTokens - 1) / kGroupTokens;
    const size_t blocks = (columns + kByteBlock - 1) / kByteBlock * groups * kGroupTokens;
    return {
        .scales = blocks * kByteFactors,
        .starts = blocks * kByteFactors,
        .bytes = blocks * kByteBlock,
    };
}

Plan::Room Plan::prepare(const Input& in, const Matrix& matrix, size_t segments) {
    const size_t columns = matrix.columns, tokens = in.tokens;
    const Room each = room(in, matrix);
    room_.values = std::max(room_.values, segments * each.values);
    room_.codes = std::max(room_.codes, segments * each.codes);
    room_.scales = std::max(room_.scales, segments * each.scales);
    room_.starts = std::max(room_.starts, segments * each.starts);
    room_.bytes = std::max(room_.bytes, segments * each.bytes);
    if (in.norm) normed_ = std::max(normed_, tokens * columns);
    // Tokens of a group may share cache lines, which two threads would take from each other.
    const size_t at_once = in.bytes && matrix.kind == Kind::int8 ? kGroupTokens : 1;
    const size_t groups = (tokens + at_once - 1) / at_once;
    add(segments * groups, [=, kind = matrix.kind](Arena& arena, size_t task, float*) {
        const size_t segment = task / groups, first = task % groups * at_once;
        for (size_t t = first; t < std::min(tokens, first + at_once); ++t) {
            const float* row = in.x + (t * segments + segment) * columns;
            if (in.norm) {
                float* normed = arena.normed.data() + t * columns;
                by_.rms_norm(row, in.norm, in.eps, columns, normed);
                row = normed;
            }
            kernels(in, kind).prepare(kind, {row, columns, t, tokens}, arena.memory(segment, each));
        }
    });
    return each;
}

void Plan::products(const Input& in, const std::vector<Matrix>& matrices, const Output& out) {
    struct Part {
        Matrix matrix;
        size_t begin, rows, first;  // its first column of y, rows per task, its first task
    };
    std::vector<Part> parts;
    size_t tasks = 0, begin = 0;
    for (const Matrix& matrix : matrices) {
        const size_t rows = by_.task_rows(matrix, in.tokens, threads_);
        parts.push_back({matrix, begin, rows, tasks});
        tasks += (matrix.rows + rows - 1) / rows;
        begin += matrix.rows;
    }
    if (!out.y) parts_ = std::max(parts_, in.tokens * out.ldy);
    for (const Matrix& matrix : matrices)
        if (in.tokens > 1 || in.bytes) scratch_ = std::max(scratch_, kernels(in, matrix.kind).scratch);
    add(tasks, [=](Arena& arena, size_t task, float* scratch) {
        size_t n = parts.size() - 1;
        while (parts[n].first > task) --n;
        const Part& part = parts[n];
        const size_t row = (task - part.first) * part.rows;
        const Product what{
            .matrix = part.matrix,
            .x = arena.activations(),
            .tokens = in.tokens,
            .y = (out.y ? out.y : arena.parts.data()) + part.begin,
            .ldy = out.ldy,
            .add = out.add,
        };
        kernels(in, part.matrix.kind).run(what, row, std::min(row + part.rows, part.matrix.rows), scratch);
    });
}

void Plan::run(int threads) {
    if (running_.exchange(true))
        throw std::logic_error("this plan runs on another thread already, over the same memory");
    struct Done {
        std::atomic<bool>& running;
        ~Done() { running = false; }
    } done{running_};
    thread_local Arena arena;
    arena.normed.grow(normed_);
    arena.parts.grow(parts_);
    arena.values.grow(room_.values);
    arena.codes.grow(room_.codes);
    arena.scales.grow(room_.scales);
    arena.starts.grow(room_.starts);
    arena.bytes.grow(room_.bytes);
    if (arena.scratch.size() < size_t(threads)) arena.scratch.resize(size_t(threads));
    for (int n = 0; n < threads; ++n) arena.scratch[size_t(n)].grow(scratch_);
    for (auto& op : ops_) op->next = 0;
    Arena& shared = arena;
    std::exception_ptr failure;
    std::atomic<bool> failed{false};
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
    {
        const DefaultFloatState state;
        float* scratch = shared.scratch[size_t(this_thread())].data();
        for (auto& op : ops_) {
            for (size_t task;
                 !failed && (task = op->next.fetch_add(1, std::memory_order_relaxed)) < op->tasks;) {
                try {
                    op->work(shared, task, scratch);
                } catch (...) {
                    if (!failed.exchange(true)) failure = std::current_exception();
                }
            }
#ifdef _OPENMP
#pragma omp barrier
#endif
        }
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace baize
