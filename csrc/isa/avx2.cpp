// AVX2 with FMA and F16C.
#include "csrc/isa/implementations.h"

#if BAIZE_X86

#include "csrc/cpu.h"

#define BAIZE_TARGET __attribute__((target("avx2,fma,f16c")))
#include "csrc/isa/avx2.h"
// the vector type first, because the algorithms use it
#include "csrc/generic/byte_panels.h"
#include "csrc/isa/own_kernels.h"

namespace baize {

const char* why_not_avx2() {
    const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    return has ? nullptr : "this processor lacks AVX2, FMA or F16C";
}

Implementation avx2_implementation() { return own_kernels("avx2", why_not_avx2, kBytePanels); }

}  // namespace baize

#endif
