// The algorithms of generic/, but the products with bytes, compiled for the vector type `Vec` of the file
// that includes this, and the implementation that they make.
#pragma once

#include "csrc/generic/attention.h"
#include "csrc/generic/diff_add.h"
#include "csrc/generic/elements.h"
#include "csrc/generic/elementwise.h"
#include "csrc/generic/int4_product.h"
#include "csrc/generic/product.h"
#include "csrc/generic/quantize.h"
#include "csrc/generic/sample.h"
#include "csrc/isa/implementations.h"

namespace baize {

namespace {

Implementation own_kernels(const char* name, const char* (*why_not)(), const ProductKernels& byte_product) {
    return {
        .name = name,
        .why_not = why_not,
        .request = []() -> const char* { return nullptr; },
        .elements = kElements,
        .add_chunk = add_chunk,
        .task_rows = task_rows,
        .product = kProduct,
        .byte_product = byte_product,
        .int4_product = kInt4Product<false>,
        .exact_int4_product = kInt4Product<true>,
        .rms_norm = rms_norm,
        .silu_mul = silu_mul,
        .attention = kAttention,
        .quantize = kQuantize,
        .sample = kSample,
    };
}

}  // namespace

}  // namespace baize
