// The kernels of one instruction set, and the table of all of them. Each file of isa/ makes one row from the
// algorithms of generic/, compiled for a vector type `Vec` in its own anonymous namespace, with target
// attributes on functions: code for one instruction set is never linked into another's, and what the files
// share is compiled for every processor.
//
// elements, add_chunk, quantize and sample give equal bits in every row; a NaN narrowed to 16 bits becomes
// the positive quiet one without a payload. Products, rms_norm and attention sum in the lanes of the set's
// vectors: equal bits for any number of tokens and threads, and in "amx" and "avx512". All but elements are
// called under the default floating-point state (float_state.h).
//
// A row has one why_not for all its kernels: AVX-512 without VNNI takes AVX2's for everything, also where
// VNNI is not used.
#pragma once

#include <vector>

#include "csrc/attention.h"
#include "csrc/diff_add.h"
#include "csrc/product.h"
#include "csrc/quantize.h"
#include "csrc/sample.h"

namespace baize {

struct Implementation {
    const char* name;
    const char* (*why_not)();  // why this processor or system cannot run it; nullptr if it can
    // Asks the system for what products need, for the whole process; why it refuses, or nullptr.
    const char* (*request)();

    ElementKernels elements;
    // At most kChunk elements; returns their sum.
    double (*add_chunk)(const Addition& what, Counts& counts);

    size_t (*task_rows)(const Matrix& matrix, size_t tokens, size_t threads);  // of one task of a product
    ProductKernels product;  // float32 activations with float weights, 16-bit codes with int8
    ProductKernels byte_product;  // 8-bit codes with int8 weights
    ProductKernels int4_product, exact_int4_product;  // 8-bit and 16-bit codes with int4 weights
    void (*rms_norm)(const float* x, const float* weight, float eps, size_t size, float* out);
    void (*silu_mul)(const float* gate, const float* up, size_t size, float* out);
    AttentionKernels attention;
    QuantizeKernels quantize;
    SampleKernels sample;
};

// All implementations of this build, the best first. The last one, "scalar", runs on every processor.
const std::vector<Implementation>& implementations();

// The first that this processor can run.
const Implementation& best_implementation();

}  // namespace baize
