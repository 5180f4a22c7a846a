// The operands of a product: activations as the kernels of every instruction set read them, and the output.
#pragma once

#include "csrc/matrix.h"

namespace baize {

// Columns that a product processes at a time: a panel of them stays in the caches.
constexpr size_t kBlock = 512;
constexpr size_t kByteBlock = 1024;  // columns that a product processes at a time when activations are bytes
constexpr size_t kByteFactors = kByteBlock / kSection;  // scales of such a block
// Tokens encoded as bytes together; some sets keep them together in memory.
constexpr size_t kGroupTokens = 16;

// int4 products process kInt4Chunk columns at a time: bytes for their codes (of 16 bits, or two planes of 8),
// scales and what totals begin with, a token.
constexpr size_t kInt4Chunk = 512, kInt4ChunkBytes = kInt4Chunk * 2, kInt4ChunkScales = kInt4Chunk / 64,
                 kInt4ChunkStarts = 2 * 2 * kInt4Chunk / kInt4Block;

// Row `token` of x (tokens, columns).
struct TokenRow {
    const float* x;
    size_t columns, token, tokens;
};

// x (T, columns) as products read it: in blocks of kBlock columns, each block token by token. Float weights
// use `values`; int8 ones use `codes` and `scales`, one per section. Columns that pad a vector or a section
// are zero.
struct Activations {
    const float* values;
    const int16_t* codes;
    const float* scales;
    const int32_t* starts;  // what totals of bytes begin with
    // Replace `codes` in int8 products with bytes and in int4 products. The layout, and that of scales and
    // starts, is generic/int4_activations.h's, or the instruction set's own (generic/byte_panels.h,
    // generic/byte_tiles.h), which have room for kByteFactors per token (in whole groups) and block.
    const uint8_t* bytes;
};

struct ActivationMemory {
    float* values;
    int16_t* codes;
    float* scales;
    int32_t* starts;
    uint8_t* bytes;
};

// One product: y (T, ldy) (+)= x times the matrix transposed.
struct Product {
    Matrix matrix;
    Activations x;
    size_t tokens;
    float* y;
    size_t ldy;
    bool add;
};

// The kernels of one way to encode activations. Scratch memory is aligned to 64 bytes.
struct ProductKernels {
    void (*prepare)(Kind weights, const TokenRow& row, const ActivationMemory& to);  // lays out one row of x
    // Rows [begin, end) of the matrix.
    void (*run)(const Product& what, size_t begin, size_t end, float* scratch);
    size_t scratch;  // in floats
};

}  // namespace baize
