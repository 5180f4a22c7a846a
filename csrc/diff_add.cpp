#include "csrc/diff_add.h"

#include <algorithm>
#include <vector>

#include "csrc/float_state.h"
#include "csrc/implementation.h"

namespace baize {

Counts diff_add(const Implementation& by, const Addition& what, int threads, double* chunk_sums) {
    const auto chunks = static_cast<int64_t>(what.chunks());
    int64_t overflowed = 0, nonfinite = 0;
#ifdef _OPENMP
    const int team = int(std::min<int64_t>(threads, std::max<int64_t>(chunks, 1)));
#pragma omp parallel for num_threads(team) if (team > 1) schedule(static) reduction(+ : overflowed, nonfinite)
#else
    (void)threads;
#endif
    for (int64_t n = 0; n < chunks; ++n) {
        Counts counts;
        // The call by pointer keeps the compiler from moving work out of its scope.
        const DefaultFloatState state;
        chunk_sums[n] = by.add_chunk(what.chunk(size_t(n)), counts);
        overflowed += counts.overflowed;
        nonfinite += counts.nonfinite;
    }
    return {overflowed, nonfinite};
}

void add_rows(double* sums, size_t columns, Operand rows, size_t count) {
    const DefaultFloatState state;
    const Implementation& best = best_implementation();
    std::vector<float> row(columns);
    for (size_t r = 0; r < count; ++r) {
        best.elements.widen(rows.from(r * columns), columns, row.data());
        for (size_t c = 0; c < columns; ++c) sums[c] += row[c];
    }
}

}  // namespace baize
