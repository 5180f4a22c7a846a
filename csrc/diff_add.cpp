#include "diff_add.h"

#include <algorithm>

#include "float_state.h"
#include "variants.h"

namespace baize {

const std::vector<Variant>& variants() {
    static const std::vector<Variant> table = [] {
        std::vector<Variant> rows;
        for (const Variant& row : {avx512_variant(), avx2_variant(), scalar_variant()})
            if (row.chunk) rows.push_back(row);
        return rows;
    }();
    return table;
}

const Variant& best_variant() {
    return *std::find_if(variants().begin(), variants().end(), [](const Variant& row) { return !row.why_not(); });
}

Counts diff_add(const Variant& variant, Operand base, Operand diff, Target out, size_t count, bool subtract, int threads,
                double* chunk_sums) {
    const auto chunks = static_cast<int64_t>((count + kChunk - 1) / kChunk);
    int64_t overflowed = 0, nonfinite = 0;
#ifdef _OPENMP
    const int team = int(std::min<int64_t>(threads, std::max<int64_t>(chunks, 1)));
#pragma omp parallel for num_threads(team) if (team > 1) schedule(static) reduction(+ : overflowed, nonfinite)
#else
    (void)threads;
#endif
    for (int64_t n = 0; n < chunks; ++n) {
        const size_t begin = size_t(n) * kChunk, size = std::min(kChunk, count - begin);
        Counts counts;
        const DefaultFloatState state;  // the call by pointer keeps the compiler from moving work out of its scope
        chunk_sums[n] = variant.chunk({base.data + begin * itemsize(base.dtype), base.dtype},
                                      {diff.data + begin * itemsize(diff.dtype), diff.dtype},
                                      {out.data + begin * itemsize(out.dtype), out.dtype}, size, subtract, counts);
        overflowed += counts.overflowed;
        nonfinite += counts.nonfinite;
    }
    return {overflowed, nonfinite};
}

void add_rows(double* sums, size_t columns, Operand rows, size_t count) {
    const DefaultFloatState state;
    const Variant& variant = best_variant();
    std::vector<float> row(columns);
    for (size_t r = 0; r < count; ++r) {
        variant.widen({rows.data + r * columns * itemsize(rows.dtype), rows.dtype},
                      reinterpret_cast<uint8_t*>(row.data()), columns);
        for (size_t c = 0; c < columns; ++c) sums[c] += row[c];
    }
}

}  // namespace baize
