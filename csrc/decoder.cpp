#include "decoder.h"

#include <algorithm>
#include <exception>
#include <stdexcept>

#include "decoder_variants.h"
#include "float_state.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace baize {

const std::vector<Kernels>& kernel_variants() {
    static const std::vector<Kernels> table = [] {
        std::vector<Kernels> rows;
        for (const Kernels& row : {amx_kernels(), avx512_kernels(), avx2_kernels(), scalar_kernels()})
            if (row.product) rows.push_back(row);
        return rows;
    }();
    return table;
}

// Memory for intermediate results. It belongs to the thread that calls run(), and all plans that the thread runs share it.
struct Plan::Arena {
    Buffer<float> normed, parts, values, scales;
    Buffer<int16_t> codes;
    Buffer<int32_t> offsets;
    Buffer<uint8_t> bytes;
    std::vector<Buffer<float>> scratch;  // one per thread of the team

    Activations activations(bool in_bytes) const {
        return {values.data(), codes.data(), scales.data(), offsets.data(), in_bytes ? bytes.data() : nullptr};
    }
};

namespace {

int this_thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// Threads of a team that this thread starts, as set by torch.set_num_threads.
size_t threads() {
#ifdef _OPENMP
    return size_t(omp_get_max_threads());
#else
    return 1;
#endif
}

}  // namespace

void Plan::add(size_t tasks, Work work) { ops_.push_back(std::make_unique<Op>(tasks, std::move(work))); }

void Plan::append(const Embed& op) {
    const size_t row_bytes = op.hidden * (op.kind == Kind::float32 ? 4 : 2);
    add(op.tokens, [=](Arena&, size_t t, float*) {
        const int64_t id = op.ids[t];
        if (id < 0 || size_t(id) >= op.rows)
            throw std::out_of_range("token id " + std::to_string(id) + ", wanted 0 to " + std::to_string(op.rows - 1));
        kernels_.widen(op.kind, op.weight + size_t(id) * row_bytes, op.hidden, op.out + t * op.hidden);
    });
}

namespace {

void check_place(const char* what, int64_t found, size_t count) {
    if (found < 0 || size_t(found) >= count)
        throw std::out_of_range(std::string(what) + " " + std::to_string(found) + ", wanted 0 to " + std::to_string(count - 1));
}

void check_beside(const std::vector<Matrix>& matrices) {
    for (const Matrix& matrix : matrices)
        if (matrix.columns != matrices[0].columns || (matrix.kind != matrices[0].kind && (matrix.quantised() || matrices[0].quantised())))
            throw std::invalid_argument("matrices side by side must have as many columns, and one kind where they are quantised");
}

// Whether activations are rounded to bytes.
bool by_bytes(bool int8_activations, const Matrix& matrix) { return int8_activations && matrix.quantised(); }

}  // namespace

void Plan::prepare(const float* x, size_t tokens, const Matrix& matrix, bool bytes, const float* norm, float eps) {
    const size_t columns = matrix.columns, padded = (columns + kBlock - 1) / kBlock * kBlock * tokens;
    if (norm) normed_ = std::max(normed_, tokens * columns);
    if (bytes) {
        const size_t groups = (tokens + kGroupTokens - 1) / kGroupTokens;
        const size_t blocks = (columns + kByteBlock - 1) / kByteBlock * groups * kGroupTokens;
        bytes_ = std::max(bytes_, blocks * kByteBlock);
        scales_ = std::max(scales_, blocks * kByteFactors);
        offsets_ = std::max(offsets_, blocks * kByteFactors);
    } else if (matrix.quantised()) {
        codes_ = std::max(codes_, padded);
        scales_ = std::max(scales_, padded / section_of(matrix.kind) + 16);  // the widest vector may begin at the last scale
        if (tokens == 1) offsets_ = std::max(offsets_, padded / kGroup * kOffsets);
    } else {
        values_ = std::max(values_, padded);
    }
    // Tokens of a group may share cache lines, which two threads would take from each other.
    const size_t at_once = bytes ? kGroupTokens : 1;
    add((tokens + at_once - 1) / at_once, [=, kind = matrix.kind](Arena& arena, size_t task, float*) {
        for (size_t t = task * at_once; t < std::min(tokens, (task + 1) * at_once); ++t) {
            const float* row = x + t * columns;
            if (norm) {
                float* normed = arena.normed.data() + t * columns;
                kernels_.rms_norm(row, norm, eps, columns, normed);
                row = normed;
            }
            kernels_.prepare(kind, row, columns, t, tokens,
                             {arena.values.data(), arena.codes.data(), arena.scales.data(), arena.offsets.data(),
                              bytes ? arena.bytes.data() : nullptr});
        }
    });
}

void Plan::products(size_t tokens, const std::vector<Matrix>& matrices, bool bytes, float* y, size_t ldy, bool add_to) {
    struct Part {
        Matrix matrix;
        size_t begin, rows, first;  // its first column of y, rows per task, its first task
    };
    check_beside(matrices);
    std::vector<Part> parts;
    size_t tasks = 0, begin = 0;
    for (const Matrix& matrix : matrices) {
        const size_t rows = kernels_.task_rows(matrix, tokens);
        parts.push_back({matrix, begin, rows, tasks});
        tasks += (matrix.rows + rows - 1) / rows;
        begin += matrix.rows;
    }
    if (!y) parts_ = std::max(parts_, tokens * ldy);
    if (tokens > 1 || bytes) scratch_ = std::max(scratch_, kernels_.product_scratch());
    add(tasks, [=](Arena& arena, size_t task, float* scratch) {
        size_t n = parts.size() - 1;
        while (parts[n].first > task) --n;
        const Part& part = parts[n];
        const size_t row = (task - part.first) * part.rows;
        const Product what{part.matrix, arena.activations(bytes), tokens, (y ? y : arena.parts.data()) + part.begin, ldy, add_to};
        kernels_.product(what, row, std::min(row + part.rows, part.matrix.rows), scratch);
    });
}

void Plan::append(const QkvRopeStore& op) {
    const size_t width = (op.heads + 2 * op.kv_heads) * op.dim, half = op.dim / 2;
    const size_t row_bytes = op.kv_heads * op.dim * (op.cache == Kind::float32 ? 4 : 2);
    const bool bytes = by_bytes(op.int8_activations, op.matrices[0]);
    prepare(op.x, op.tokens, op.matrices[0], bytes, op.norm, op.eps);
    products(op.tokens, op.matrices, bytes, nullptr, width, false);
    scratch_ = std::max(scratch_, op.kv_heads * op.dim);
    add(op.tokens, [=](Arena& arena, size_t t, float* turned) {
        check_place("position", op.positions[t], op.turns);
        check_place("slot", op.slots[t], op.places);
        const size_t position = size_t(op.positions[t]), slot = size_t(op.slots[t]);
        const float* row = arena.parts.data() + t * width;
        const float *c = op.cos + position * half, *s = op.sin + position * half;
        for (size_t head = 0; head < op.heads + op.kv_heads; ++head) {
            const float* from = row + head * op.dim;
            float* to = head < op.heads ? op.q + (t * op.heads + head) * op.dim : turned + (head - op.heads) * op.dim;
            for (size_t d = 0; d < half; ++d) {
                to[d] = from[d] * c[d] - from[half + d] * s[d];
                to[half + d] = from[half + d] * c[d] + from[d] * s[d];
            }
        }
        const float* value = row + (op.heads + op.kv_heads) * op.dim;
        kernels_.narrow(op.cache, turned, op.kv_heads * op.dim, op.keys + slot * row_bytes);
        kernels_.narrow(op.cache, value, op.kv_heads * op.dim, op.values + slot * row_bytes);
    });
}

namespace {

// Throws unless queries [first, last) belong to sequence `n`, its context holds them, and its tokens [from, to) are in blocks of
// the cache.
void check_sequence(const Attention& a, size_t n, size_t first, size_t last, size_t from, size_t to) {
    const int64_t begin = a.starts[n], end = a.starts[n + 1], length = a.lens[n], most = int64_t(a.table_stride * a.block);
    const bool one_each = a.sequences == a.tokens;
    if (begin < 0 || begin > int64_t(first) || end < int64_t(last) || end > int64_t(a.tokens) || (one_each && end - begin != 1))
        throw std::out_of_range("sequence " + std::to_string(n) + " has queries " + std::to_string(begin) + " to " +
                                std::to_string(end) + ", wanted all of " + std::to_string(a.tokens) + " in order" +
                                (one_each ? ", one each" : ""));
    if (length < end - begin || length > most)
        throw std::out_of_range("context " + std::to_string(length) + ", wanted " + std::to_string(end - begin) + " to " +
                                std::to_string(most));
    for (size_t block = from / a.block; block * a.block < std::min(size_t(length), to); ++block)
        check_place("block", a.tables[n * a.table_stride + block], a.blocks);
}

}  // namespace

void Plan::append(const Attention& op) {
    if (op.tokens == 0) return;
    Attention a = op;
    a.splits = (a.table_stride * a.block + kSplit - 1) / kSplit;
    const size_t group = a.heads / a.kv_heads;
    if (a.sequences == a.tokens) {  // one query each: the splits of a context are tasks of their own
        // Key heads that are adjacent in memory form one task, as long as every thread gets two tasks (with short contexts).
        const size_t together = std::clamp<size_t>(a.tokens * a.kv_heads / (2 * threads()), 1, 8);
        const size_t pieces = (a.kv_heads + together - 1) / together;
        const bool split = a.splits > 1;
        scratch_ = std::max(scratch_, kernels_.attention_scratch(a, group, together));
        if (split) parts_ = std::max(parts_, a.tokens * a.heads * a.splits * a.part_floats());
        add(a.tokens * a.splits * pieces, [=](Arena& arena, size_t task, float* scratch) {
            const size_t n = task / pieces % a.splits, t = task / pieces / a.splits, head = task % pieces * together;
            check_sequence(a, t, t, t + 1, n * kSplit, (n + 1) * kSplit);
            if (n * kSplit < size_t(a.lens[t]))
                kernels_.attend(a, {t, t, t + 1, head, std::min(together, a.kv_heads - head)}, n, n + 1,
                                split ? arena.parts.data() : nullptr, scratch);
        });
        if (split) add(a.tokens, [=](Arena& arena, size_t t, float*) { kernels_.merge(a, t, arena.parts.data()); });
        return;
    }
    // A task is a block of queries, which may span sequences; the last blocks come first, because they have the most to read.
    const size_t queries = std::min(std::max<size_t>(1, 64 / group), a.tokens), blocks = (a.tokens + queries - 1) / queries;
    scratch_ = std::max(scratch_, kernels_.attention_scratch(a, queries * group, 1));
    add(blocks * a.kv_heads, [=](Arena&, size_t task, float* scratch) {
        const size_t block = blocks - 1 - task / a.kv_heads, end = std::min((block + 1) * queries, a.tokens);
        size_t sequence = 0;
        for (size_t first = block * queries; first < end;) {
            while (sequence + 1 < a.sequences && a.starts[sequence + 1] <= int64_t(first)) ++sequence;
            const size_t last = std::clamp<size_t>(size_t(a.starts[sequence + 1]), first + 1, end);
            check_sequence(a, sequence, first, last, 0, a.table_stride * a.block);
            kernels_.attend(a, {sequence, first, last, task % a.kv_heads, 1}, 0, a.splits, nullptr, scratch);
            first = last;
        }
    });
}

void Plan::append(const LinearAdd& op) {
    const bool bytes = by_bytes(op.int8_activations, op.matrix);
    prepare(op.x, op.tokens, op.matrix, bytes);
    products(op.tokens, {op.matrix}, bytes, op.out, op.matrix.rows, true);
}

void Plan::append(const GateUp& op) {
    const std::vector<Matrix>& matrices = op.matrices;
    check_beside(matrices);
    size_t width = 0;
    for (const Matrix& matrix : matrices) width += matrix.rows;
    const bool bytes = by_bytes(op.int8_activations, matrices[0]);
    prepare(op.x, op.tokens, matrices[0], bytes, op.norm, op.eps);
    // A task computes gate and up of the same rows, which are still in its core's cache when they are multiplied.
    const size_t inner = width / 2, rows = kernels_.task_rows(matrices[0], op.tokens), own = kernels_.product_scratch();
    scratch_ = std::max(scratch_, own + 2 * rows * op.tokens);
    add((inner + rows - 1) / rows, [=](Arena& arena, size_t task, float* scratch) {
        const size_t begin = task * rows, count = std::min(rows, inner - begin);
        float* both = scratch + own;  // (tokens, 2, count)
        for (size_t half = 0; half < 2; ++half) {
            const size_t first = half * inner + begin, last = first + count;  // rows, counted through all matrices
            size_t before = 0;
            for (const Matrix& matrix : op.matrices) {
                const size_t from = std::max(first, before), to = std::min(last, before + matrix.rows);
                if (from < to) {
                    const Product what{matrix.part(from - before, to - before), arena.activations(bytes), op.tokens,
                                       both + half * count + (from - first), 2 * count, false};
                    kernels_.product(what, 0, to - from, scratch);
                }
                before += matrix.rows;
            }
        }
        for (size_t t = 0; t < op.tokens; ++t)
            kernels_.silu_mul(both + 2 * count * t, both + 2 * count * t + count, count, op.out + t * inner + begin);
    });
}

void Plan::append(const Head& op) {
    const size_t vocabulary = op.matrix.rows, blocks = (vocabulary + kBestBlock - 1) / kBestBlock;
    prepare(op.x, op.tokens, op.matrix, false, op.norm, op.eps);
    products(op.tokens, {op.matrix}, false, op.out, vocabulary, false);
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
    add(op.rows, [=, &loops = sample_loops(kernels_.name)](Arena&, size_t row, float* scratch) {
        baize::sample(op, loops, row, scratch);
    });
}

void Plan::append(const Advance& op) {
    add(op.rows, [=](Arena&, size_t row, float*) { baize::advance(op, row); });
}

void Plan::run(int threads) {
    if (running_.exchange(true)) throw std::logic_error("this plan runs on another thread already, over the same memory");
    struct Done {
        std::atomic<bool>& running;
        ~Done() { running = false; }
    } done{running_};
    thread_local Arena arena;
    arena.normed.grow(normed_);
    arena.parts.grow(parts_);
    arena.values.grow(values_);
    arena.codes.grow(codes_);
    arena.scales.grow(scales_);
    arena.offsets.grow(offsets_);
    arena.bytes.grow(bytes_);
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
            for (size_t task; !failed && (task = op->next.fetch_add(1, std::memory_order_relaxed)) < op->tasks;) {
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
