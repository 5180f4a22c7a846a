// The implementation for every processor, with which the others are compared.
#include "csrc/isa/rows.h"

#define BAIZE_TARGET
#include "csrc/isa/scalar.h"
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

const char* why_not() { return nullptr; }

}  // namespace

Implementation scalar_implementation() {
    return {
        .name = "scalar",
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
