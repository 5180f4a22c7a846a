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
        for (const Kernels& row : {avx512_kernels(), avx2_kernels(), scalar_kernels()})
            if (row.product) rows.push_back(row);
        return rows;
    }();
    return table;
}

// Memory between ops, of the thread that calls run(); every plan of it uses the same.
struct Plan::Arena {
    std::vector<float> normed, parts, scales;
    std::vector<int16_t> codes;
    std::vector<std::vector<float>> panels;  // one a thread of the team
};

namespace {

template <class T>
void grow(std::vector<T>& memory, size_t size) {
    if (memory.size() < size) memory.resize(size);
}

int this_thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

}  // namespace

void Plan::add(size_t tasks, std::function<void(Arena&, size_t)> work) {
    ops_.push_back(std::make_unique<Op>(tasks, std::move(work)));
}

void Plan::embed(const int64_t* ids, size_t tokens, Kind kind, const uint8_t* weight, size_t rows, size_t hidden,
                 float* out) {
    const size_t row_bytes = hidden * (kind == Kind::float32 ? 4 : 2);
    add(tokens, [=](Arena&, size_t t) {
        if (ids[t] < 0 || size_t(ids[t]) >= rows)
            throw std::out_of_range("token id " + std::to_string(ids[t]) + ", wanted 0 to " + std::to_string(rows - 1));
        kernels_.widen(kind, weight + size_t(ids[t]) * row_bytes, hidden, out + t * hidden);
    });
}

void Plan::norm(const float* x, size_t tokens, const float* weight, float eps, size_t size) {
    normed_ = std::max(normed_, tokens * size);
    add(tokens, [=](Arena& arena, size_t t) {
        kernels_.rms_norm(x + t * size, weight, eps, size, arena.normed.data() + t * size);
    });
}

void Plan::products(const float* x, size_t tokens, const std::vector<Matrix>& matrices, float* y, size_t ldy, bool add_to) {
    const size_t columns = matrices[0].columns, groups = matrices[0].groups(), padded = groups * kGroup;
    const bool integers = matrices[0].quantised() && tokens <= kExactRows;
    if (integers) {
        codes_ = std::max(codes_, tokens * padded);
        scales_ = std::max(scales_, tokens * groups);
        add(tokens, [=](Arena& arena, size_t t) {
            const float* row = (x ? x : arena.normed.data()) + t * columns;
            kernels_.quantise(row, columns, arena.codes.data() + t * padded, arena.scales.data() + t * groups);
        });
    }
    struct Part {
        Matrix matrix;
        size_t begin, rows, first;  // the column of y where it begins, rows of a task, its first task
    };
    std::vector<Part> parts;
    size_t tasks = 0, begin = 0;
    for (const Matrix& matrix : matrices) {
        const size_t rows = kernels_.panel_rows(matrix, tokens);
        panel_ = std::max(panel_, rows * std::max(columns, groups) + kFactorRows * groups);
        parts.push_back({matrix, begin, rows, tasks});
        tasks += (matrix.rows + rows - 1) / rows;
        begin += matrix.rows;
    }
    if (!y) {
        parts_ = std::max(parts_, tokens * ldy);
    }
    add(tasks, [=](Arena& arena, size_t task) {
        size_t n = parts.size() - 1;
        while (parts[n].first > task) --n;
        const Part& part = parts[n];
        const size_t row = (task - part.first) * part.rows;
        Product what{part.matrix, x ? x : arena.normed.data(), integers ? arena.codes.data() : nullptr,
                     integers ? arena.scales.data() : nullptr, tokens, (y ? y : arena.parts.data()) + part.begin, ldy, add_to};
        kernels_.product(what, row, std::min(row + part.rows, part.matrix.rows), arena.panels[size_t(this_thread())].data());
    });
}

void Plan::qkv_rope_store(const float* x, size_t tokens, const float* norm_weight, float eps, std::vector<Matrix> matrices,
                          const float* cos, const float* sin, const int64_t* positions, float* keys, float* values,
                          const int64_t* slots, size_t heads, size_t kv_heads, size_t dim, float* q) {
    const size_t width = (heads + 2 * kv_heads) * dim, half = dim / 2;
    norm(x, tokens, norm_weight, eps, matrices[0].columns);
    products(nullptr, tokens, matrices, nullptr, width, false);
    add(tokens, [=](Arena& arena, size_t t) {
        const float* row = arena.parts.data() + t * width;
        const float *c = cos + size_t(positions[t]) * half, *s = sin + size_t(positions[t]) * half;
        const size_t slot = size_t(slots[t]) * kv_heads * dim;
        for (size_t head = 0; head < heads + kv_heads; ++head) {
            const float* from = row + head * dim;
            float* to = head < heads ? q + (t * heads + head) * dim : keys + slot + (head - heads) * dim;
            for (size_t d = 0; d < half; ++d) {
                to[d] = from[d] * c[d] - from[half + d] * s[d];
                to[half + d] = from[half + d] * c[d] + from[d] * s[d];
            }
        }
        std::copy_n(row + (heads + kv_heads) * dim, kv_heads * dim, values + slot);
    });
}

void Plan::attention(const Attention& what) {
    const size_t queries = what.sequences == what.tokens ? 1 : 8;  // one sequence's rows mostly
    const size_t blocks = (what.tokens + queries - 1) / queries;
    add(blocks * what.kv_heads, [=](Arena&, size_t task) {
        // the last queries first: they have the most to read
        const size_t block = blocks - 1 - task / what.kv_heads;
        kernels_.attend(what, task % what.kv_heads, block * queries, std::min((block + 1) * queries, what.tokens));
    });
}

void Plan::linear_add(const float* x, size_t tokens, const Matrix& matrix, float* out) {
    products(x, tokens, {matrix}, out, matrix.rows, true);
}

void Plan::gate_up(const float* x, size_t tokens, const float* norm_weight, float eps, std::vector<Matrix> matrices,
                   float* out) {
    size_t width = 0;
    for (const Matrix& matrix : matrices) width += matrix.rows;
    const size_t inner = width / 2;
    norm(x, tokens, norm_weight, eps, matrices[0].columns);
    products(nullptr, tokens, matrices, nullptr, width, false);
    add(tokens, [=](Arena& arena, size_t t) {
        const float* row = arena.parts.data() + t * width;
        kernels_.silu_mul(row, row + inner, inner, out + t * inner);
    });
}

void Plan::head(const float* x, size_t tokens, const float* norm_weight, float eps, const Matrix& matrix, float* out,
                int32_t* best) {
    const size_t vocabulary = matrix.rows, blocks = (vocabulary + kBestBlock - 1) / kBestBlock;
    norm(x, tokens, norm_weight, eps, matrix.columns);
    products(nullptr, tokens, {matrix}, out, vocabulary, false);
    if (!best) return;
    add(tokens, [=](Arena&, size_t t) {
        const float* row = out + t * vocabulary;
        for (size_t b = 0; b < blocks; ++b) {
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

void Plan::run(int threads) {
    thread_local Arena arena;
    grow(arena.normed, normed_);
    grow(arena.parts, parts_);
    grow(arena.codes, codes_);
    grow(arena.scales, scales_);
    if (arena.panels.size() < size_t(threads)) arena.panels.resize(size_t(threads));
    for (int n = 0; n < threads; ++n) grow(arena.panels[size_t(n)], panel_);
    for (auto& op : ops_) op->next = 0;
    Arena& shared = arena;
    std::exception_ptr failure;
    std::atomic<bool> failed{false};
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
    {
        const DefaultFloatState state;
        for (auto& op : ops_) {
            for (size_t task; !failed && (task = op->next.fetch_add(1, std::memory_order_relaxed)) < op->tasks;) {
                try {
                    op->work(shared, task);
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
