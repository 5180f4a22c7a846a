// The decoder's host kernels: products with weights of every kind, attention over the paged cache, norms and the rest, as a
// plan of ops over buffers that one call runs. Activations are float32. Knows ops, no layers and no model.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "element.h"

namespace baize {

constexpr size_t kGroup = 64;     // columns that share an int4 scale and an activation's scale: GROUP of kernels/quantized.py
constexpr size_t kBestBlock = 32;  // BEST_BLOCK of kernels/reference.py
constexpr size_t kFactorRows = 32;  // a product's block has at most as many rows times tokens
constexpr size_t kExactRows = 64;  // products of more rows widen int8 and int4 weights to float32

enum class Kind { float32, float16, bfloat16, int8, int4 };

// A matrix (rows, columns) as kernels/quantized.py lays it out; `scales` float32 a row for int8, float16 a group for int4.
struct Matrix {
    Kind kind;
    const uint8_t* values;
    const uint8_t* scales;
    size_t rows, columns;

    size_t groups() const { return (columns + kGroup - 1) / kGroup; }
    size_t row_bytes() const {
        switch (kind) {
            case Kind::float32: return columns * 4;
            case Kind::int8: return columns;
            case Kind::int4: return groups() * (kGroup / 2);
            default: return columns * 2;
        }
    }
    bool quantised() const { return kind == Kind::int8 || kind == Kind::int4; }
};

// One product: y (T, ldy) (+)= x (T, columns) times the matrix transposed. `codes`, `scales`: x in int16, group by group.
struct Product {
    Matrix matrix;
    const float* x;
    const int16_t* codes;
    const float* scales;
    size_t tokens;
    float* y;
    size_t ldy;
    bool add;
};

struct Attention {
    const float *q, *keys, *values;
    const int32_t *tables, *starts, *lens;
    size_t tokens, sequences, table_stride, heads, kv_heads, dim, block;
    float scale;
    float* out;
};

// What one instruction set offers.
struct Kernels {
    const char* name;
    const char* (*why_not)();
    size_t (*panel_rows)(const Matrix&, size_t tokens);  // rows of a matrix that are one task
    void (*product)(const Product&, size_t begin, size_t end, float* panel);
    void (*quantise)(const float* x, size_t columns, int16_t* codes, float* scales);
    void (*rms_norm)(const float* x, const float* weight, float eps, size_t size, float* out);
    void (*silu_mul)(const float* gate, const float* up, size_t size, float* out);
    void (*attend)(const Attention&, size_t kv_head, size_t begin, size_t end);  // queries [begin, end)
    void (*widen)(Kind, const uint8_t* from, size_t count, float* to);
};

const std::vector<Kernels>& kernel_variants();  // best first; "scalar" is the last

class Plan {
   public:
    explicit Plan(const Kernels& kernels) : kernels_(kernels) {}

    void embed(const int64_t* ids, size_t tokens, Kind kind, const uint8_t* weight, size_t rows, size_t hidden, float* out);
    // rms_norm where `norm` is given, then the products with `matrices` side by side, q, k, v rotated and stored
    void qkv_rope_store(const float* x, size_t tokens, const float* norm, float eps, std::vector<Matrix> matrices,
                        const float* cos, const float* sin, const int64_t* positions, float* keys, float* values,
                        const int64_t* slots, size_t heads, size_t kv_heads, size_t dim, float* q);
    void attention(const Attention& what);
    void linear_add(const float* x, size_t tokens, const Matrix& matrix, float* out);
    void gate_up(const float* x, size_t tokens, const float* norm, float eps, std::vector<Matrix> matrices, float* out);
    void head(const float* x, size_t tokens, const float* norm, float eps, const Matrix& matrix, float* out,
              int32_t* best);  // best may be null: the greatest of each kBestBlock logits, -1 where one is not finite

    void run(int threads);

   private:
    struct Arena;
    struct Op {
        size_t tasks;
        std::function<void(Arena&, size_t)> work;
        std::atomic<size_t> next{0};
        Op(size_t count, std::function<void(Arena&, size_t)> what) : tasks(count), work(std::move(what)) {}
    };

    void add(size_t tasks, std::function<void(Arena&, size_t)> work);
    void norm(const float* x, size_t tokens, const float* weight, float eps, size_t size);
    // reads the arena's `normed` where x is null; writes to the arena's `parts` where y is null
    void products(const float* x, size_t tokens, const std::vector<Matrix>& matrices, float* y, size_t ldy, bool add_to);

    const Kernels& kernels_;
    std::vector<std::unique_ptr<Op>> ops_;
    size_t normed_ = 0, parts_ = 0, codes_ = 0, scales_ = 0, panel_ = 0;  // elements that an arena must have
};

}  // namespace baize
