// AVX2 with FMA and F16C.
#include "csrc/isa/rows.h"

#if BAIZE_X86

#include "csrc/cpu.h"

#define BAIZE_TARGET __attribute__((target("avx2,fma,f16c")))
#include "csrc/isa/avx2.h"
// the vector type first, because the algorithms use it
#include "csrc/generic/attention.h"
#include "csrc/generic/byte_panels.h"
#include "csrc/generic/diff_add.h"
#include "csrc/generic/elements.h"
#include "csrc/generic/elementwise.h"
#include "csrc/generic/product.h"
#include "csrc/generic/quantize.h"
#include "csrc/generic/sample.h"

namespace baize {

namespace {

const char* why_not() {
    const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    return has ? nullptr : "this processor lacks AVX2, FMA or F16C";
}

}  // namespace

Implementation avx2_implementation() {
    return {
        .name = "avx2",
        .why_not = why_not,
        .elements = kElements,
        .add_chunk = add_chunk,
        .task_rows = task_rows,
        .product = kProduct,
        .byte_product = kBytePanels,
        .rms_norm = rms_norm,
        .silu_mul = silu_mul,
        .attention = kAttention,
        .quantize = kQuantize,
        .sample = kSample,
    };
}

}  // namespace baize

#endif
