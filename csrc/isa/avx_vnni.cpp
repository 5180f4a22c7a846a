// AVX2 with AVX-VNNI, of processors that have no AVX-512: int4 weights are multiplied by vpdpbusd. All else
// is AVX2's, compiled again.
#include "csrc/isa/implementations.h"

#if BAIZE_HAS_AVX_VNNI

#include <cpuid.h>

#define BAIZE_AVX_VNNI
#define BAIZE_TARGET __attribute__((target("avx2,fma,f16c,avxvnni")))
#include "csrc/isa/avx2.h"
// the vector type first, because the algorithms use it
#include "csrc/generic/byte_panels.h"
#include "csrc/isa/own_kernels.h"

namespace baize {

namespace {

const char* why_not() {
    if (const char* reason = why_not_avx2()) return reason;
    static const bool has = [] {
        unsigned a = 0, b = 0, c = 0, d = 0;
        return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
    }();
    return has ? nullptr : "this processor lacks AVX-VNNI";
}

}  // namespace

Implementation avx_vnni_implementation() { return own_kernels("avx_vnni", why_not, kBytePanels); }

}  // namespace baize

#endif
