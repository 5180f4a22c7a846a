// The kernels that each instruction set's file exports; `product` is null if the build's architecture lacks the set.
#pragma once

#include "decoder.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace baize {

#if defined(__x86_64__)
// Clang's __builtin_cpu_supports does not know F16C.
inline bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

Kernels scalar_kernels();
Kernels avx2_kernels();
Kernels avx512_kernels();
Kernels amx_kernels();

}  // namespace baize
