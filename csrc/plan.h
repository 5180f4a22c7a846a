// The decoder's ops over fixed buffers, which one call runs in order. Activations are float32. Knows ops, but
// no layers and no model.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "csrc/implementation.h"

namespace baize {

// The ops of a plan, with the operands of the functions of these names in kernels/reference.py, by address
// and size.

struct Embed {
    const int64_t* ids;
    size_t tokens;
    Operand weight;  // (rows, hidden)
    size_t rows, hidden;
    float* out;
};

// rms_norm, the products with `matrices` side by side, rotates q and k, and stores k and v in a cache of type
// `cache`.
struct QkvRopeStore {
    const float* x;  // (tokens, hidden)
    size_t tokens;
    const float* norm;
    float eps;
    std::vector<Matrix> matrices;
    const float *cos, *sin;  // (turns, dim / 2)
    size_t turns;
    const int64_t* positions;
    Dtype cache;
    uint8_t *keys, *values;  // (places, kv_heads, dim)
    size_t places;
    const int64_t* slots;
    size_t heads, kv_heads, dim;
    float* q;  // (tokens, heads, dim)
    bool int8_activations;  // whether activations that meet quantised matrices are rounded to bytes
};

struct LinearAdd {
    const float* x;
    size_t tokens;
    Matrix matrix;
    float* out;
    bool int8_activations;
};

// The products of `segments` parts of x's columns, each with its part of the matrix's rows, added by `tree`.
struct SegmentSums {
    const float* x;  // (tokens, segments * columns)
    size_t tokens, segments;  // a power of two
    Matrix matrix;  // (segments * width, columns)
    float* out;  // (tokens, width)
    bool int8_activations;
};

// Adds the sums of `ranks`, added by `tree`, to out.
struct AddSums {
    const float* sums;  // (ranks, tokens, width)
    size_t ranks, tokens, width;  // a power of two
    float* out;  // (tokens, width)
};

struct GateUp {
    const float* x;
    size_t tokens;
    const float* norm;
    float eps;
    std::vector<Matrix> matrices;
    float* out;
    bool int8_activations;
};

struct Head {
    const float* x;
    size_t tokens;
    const float* norm;
    float eps;
    Matrix matrix;
    float* out;
    int32_t* best;  // or null; the id of the greatest of each kBestBlock logits, -1 if one is not finite
};

class Plan {
   public:
    // The work is divided for teams of `threads`; `run` takes any number.
    Plan(const Implementation& by, size_t threads);

    void append(const Embed& op);
    void append(const QkvRopeStore& op);
    void append(const Attention& op);  // sets `splits`
    void append(const LinearAdd& op);
    void append(const SegmentSums& op);
    void append(const AddSums& op);
    void append(const GateUp& op);
    void append(const Head& op);
    void append(const Sample& op);
    void append(const Advance& op);

    void run(int threads);

   private:
    struct Arena;
    using Work = std::function<void(Arena&, size_t task, float* scratch)>;
    struct Op {
        size_t tasks;
        Work work;
        std::atomic<size_t> next{0};
        Op(size_t count, Work what) : tasks(count), work(std::move(what)) {}
    };
    // Activations (tokens, columns); `norm`, if not null, is the weight of the rms_norm that they pass first.
    struct Input {
        const float* x;
        size_t tokens;
        bool bytes;  // whether they may be rounded to bytes where they meet quantised matrices
        const float* norm = nullptr;
        float eps = 0.0f;
    };
    // Elements of the arena's buffers: what the activations of one product take.
    struct Room {
        size_t values = 0, codes = 0, scales = 0, starts = 0, bytes = 0;
    };
    // Where products go: y (tokens, ldy), or the arena's `parts` if it is null.
    struct Output {
        float* y;
        size_t ldy;
        bool add;
    };

    const ProductKernels& kernels(const Input& x, Kind weights) const {
        if (weights == Kind::int4) return x.bytes ? by_.int4_product : by_.exact_int4_product;
        return x.bytes && weights == Kind::int8 ? by_.byte_product : by_.product;
    }
    void add(size_t tasks, Work work);
    Room room(const Input& x, const Matrix& matrix) const;
    // Adds the op that lays out x as products with such a matrix read it. A row of x is that of `segments`
    // products, each with columns of its own, which are laid out one behind the other.
    Room prepare(const Input& x, const Matrix& matrix, size_t segments = 1);
    // Adds those of what was prepared.
    void products(const Input& x, const std::vector<Matrix>& matrices, const Output& out);
    void append_each(const Attention& op);  // one query a sequence
    void append_prompts(const Attention& op);  // several

    const Implementation& by_;
    const size_t threads_;
    std::atomic<bool> running_{false};
    std::vector<std::unique_ptr<Op>> ops_;
    // the elements that the arena needs in each buffer, and the floats of a thread's scratch memory
    size_t normed_ = 0, parts_ = 0, scratch_ = 0;
    Room room_;
};

}  // namespace baize
