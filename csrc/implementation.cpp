#include "csrc/implementation.h"

#include <algorithm>

#include "csrc/isa/implementations.h"

namespace baize {

const std::vector<Implementation>& implementations() {
    static const std::vector<Implementation> table = {
#if BAIZE_AMX
        amx_implementation(),
#endif
#if BAIZE_X86
        avx512_implementation(),
#endif
#if BAIZE_HAS_AVX_VNNI
        avx_vnni_implementation(),
#endif
#if BAIZE_X86
        avx2_implementation(),
#endif
        scalar_implementation(),
    };
    return table;
}

const Implementation& best_implementation() {
    static const Implementation& best =
        *std::find_if(implementations().begin(), implementations().end(),
                      [](const Implementation& row) { return !row.why_not(); });
    return best;
}

}  // namespace baize
