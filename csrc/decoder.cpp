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

// Memory between ops, of the thread that calls run(); every plan of it uses the same.
struct Plan::Arena {
    Buffer<float> normed, parts, values, scales;
    Buffer<int16_t> codes;
    Buffer<int32_t> offsets;
    Buffer<uint8_t> bytes;
    std::vector<Buffer<float>> scratch;  // one a thread of the team

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

// Of the teams that this thread will have, as torch.set_num_threads left it.
size_t threads() {
#ifdef _OPENMP
    return size_t(omp_get_max_threads());
#else
    return 1;
#endif
}

}  // namespace

void Plan::add(size_t tasks, Work work) { ops_.push_back(std::make_unique<Op>(tasks, std::move(work))); }

void Plan::embed(const int64_t* ids, size_t tokens, Kind kind, const uint8_t* weight, size_t rows, size_t hidden,
                 float* out) {
    const size_t row_bytes = hidden * (kind == Kind::float32 ? 4 : 2);
    add(tokens, [=](Arena&, size_t t, float*) {
        if (ids[t] < 0 || size_t(ids[t]) >= rows)
            throw std::out_of_range("token id " + std::to_string(ids[t]) + ", wanted 0 to " + std::to_string(rows - 1));
        kernels_.widen(kind, weight + size_t(ids[t]) * row_bytes, hidden, out + t * hidden);
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
        scales_ = std::max(scales_, padded / section_of(matrix.kind) + 16);  // a widest vector may begin at the last
        if (tokens == 1) offsets_ = std::max(offsets_, padded / kGroup * kOffsets);
    } else {
        values_ = std::max(values_, padded);
    }
    // Tokens of a group may lie in the same cache lines, which two threads would take from each other.
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
        size_t begin, rows, first;  // the column of y where it begins, rows of a task, its first task
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

void Plan::qkv_rope_store(const float* x, size_t tokens, const float* norm, float eps, const std::vector<Matrix>& matrices,
                          const float* cos, const float* sin, const int64_t* positions, Kind cache, uint8_t* keys,
                          uint8_t* values, const int64_t* slots, size_t heads, size_t kv_heads, size_t dim, float* q,
                          bool int8_activations, size_t turns, size_t places) {
    const size_t width = (heads + 2 * kv_heads) * dim, half = dim / 2, row_bytes = kv_heads * dim * (cache == Kind::float32 ? 4 : 2);
    const bool bytes = by_bytes(int8_activations, matrices[0]);
    prepare(x, tokens, matrices[0], bytes, norm, eps);
    products(tokens, matrices, bytes, nullptr, width, false);
    scratch_ = std::max(scratch_, kv_heads * dim);
    add(tokens, [=](Arena& arena, size_t t, float* turned) {
        check_place("position", positions[t], turns);
        check_place("slot", slots[t], places);
        const float* row = arena.parts.data() + t * width;
        const float *c = cos + size_t(positions[t]) * half, *s = sin + size_t(positions[t]) * half;
        for (size_t head = 0; head < heads + kv_heads; ++head) {
            const float* from = row + head * dim;
            float* to = head < heads ? q + (t * heads + head) * dim : turned + (head - heads) * dim;
            for (size_t d = 0; d < half; ++d) {
                to[d] = from[d] * c[d] - from[half + d] * s[d];
                to[half + d] = from[half + d] * c[d] + from[d] * s[d];
            }
        }
        kernels_.narrow(cache, turned, kv_heads * dim, keys + size_t(slots[t]) * row_bytes);
        kernels_.narrow(cache, row + (heads + kv_heads) * dim, kv_heads * dim, values + size_t(slots[t]) * row_bytes);
    });
}

namespace {

// That queries [first, last) are those of sequence `n`, its context holds them, and the cache has the blocks of its tokens [from, to).
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

void Plan::attention(const Attention& what) {
    if (what.tokens == 0) return;
    Attention a = what;
    a.splits = (a.table_stride * a.block + kSplit - 1) / kSplit;
    const size_t group = a.heads / a.kv_heads;
    if (a.sequences == a.tokens) {  // one query each: the splits of a context are tasks of their own
        // Key heads that lie side by side in memory go together, as long as every thread has two tasks (of short contexts).
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
    // A task is a block of queries that may reach over sequences; the last first, as they have the most to read.
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

void Plan::linear_add(const float* x, size_t tokens, const Matrix& matrix, float* out, bool int8_activations) {
    const bool bytes = by_bytes(int8_activations, matrix);
    prepare(x, tokens, matrix, bytes);
    products(tokens, {matrix}, bytes, out, matrix.rows, true);
}

void Plan::gate_up(const float* x, size_t tokens, const float* norm, float eps, const std::vector<Matrix>& matrices,
                   float* out, bool int8_activations) {
    check_beside(matrices);
    size_t width = 0;
    for (const Matrix& matrix : matrices) width += matrix.rows;
    const bool bytes = by_bytes(int8_activations, matrices[0]);
    prepare(x, tokens, matrices[0], bytes, norm, eps);
    // A task makes gates and ups of the same rows, which its thread's cache still has when they are joined.
    const size_t inner = width / 2, rows = kernels_.task_rows(matrices[0], tokens), own = kernels_.product_scratch();
    scratch_ = std::max(scratch_, own + 2 * rows * tokens);
    add((inner + rows - 1) / rows, [=](Arena& arena, size_t task, float* scratch) {
        const size_t begin = task * rows, count = std::min(rows, inner - begin);
        float* both = scratch + own;  // (tokens, 2, count)
        for (size_t half = 0; half < 2; ++half) {
            const size_t first = half * inner + begin, last = first + count;  // of all rows
            size_t before = 0;
            for (const Matrix& matrix : matrices) {
                const size_t from = std::max(first, before), to = std::min(last, before + matrix.rows);
                if (from < to) {
                    const Product what{matrix.part(from - before, to - before), arena.activations(bytes), tokens,
                                       both + half * count + (from - first), 2 * count, false};
                    kernels_.product(what, 0, to - from, scratch);
                }
                before += matrix.rows;
            }
        }
        for (size_t t = 0; t < tokens; ++t)
            kernels_.silu_mul(both + 2 * count * t, both + 2 * count * t + count, count, out + t * inner + begin);
    });
}

void Plan::head(const float* x, size_t tokens, const float* norm, float eps, const Matrix& matrix, float* out,
                int32_t* best) {
    const size_t vocabulary = matrix.rows, blocks = (vocabulary + kBestBlock - 1) / kBestBlock;
    prepare(x, tokens, matrix, false, norm, eps);
    products(tokens, {matrix}, false, out, vocabulary, false);
    if (!best) return;
    constexpr size_t piece = 128;  // blocks of a task
    const size_t pieces = (blocks + piece - 1) / piece;
    add(tokens * pieces, [=](Arena&, size_t task, float*) {
        const size_t t = task / pieces, first = task % pieces * piece;
        const float* row = out + t * vocabulary;
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

void Plan::sample(const Sample& what) {
    scratch_ = std::max(scratch_, sample_scratch(what));
    add(what.rows, [=, &loops = sample_loops(kernels_.name)](Arena&, size_t row, float* scratch) {
        baize::sample(what, loops, row, scratch);
    });
}

void Plan::advance(const Advance& what) {
    add(what.rows, [=](Arena&, size_t row, float*) { baize::advance(what, row); });
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
