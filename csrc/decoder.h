// The decoder's host kernels: products with weights of every kind, attention over the paged cache, norms and so on. A plan of
// ops over fixed buffers runs in one call. Activations are float32. Knows ops, but no layers and no model.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "element.h"
#include "sample.h"

namespace baize {

constexpr size_t kGroup = 64;      // columns that share an int4 scale: GROUP of kernels/quantized.py
constexpr size_t kBlock = 512;     // columns that a product processes at a time: a panel of them stays in the caches
constexpr size_t kOffsets = 16;    // the most totals of any variant's vector
constexpr size_t kByteBlock = 1024;   // columns that a product processes at a time when activations are bytes
constexpr size_t kByteFactors = kByteBlock / kGroup;  // the most scales of such a block
constexpr size_t kGroupTokens = 16;   // tokens encoded as bytes together; some variants keep them together in memory
constexpr size_t kSplit = 512;     // tokens of a context that attention processes at a time, in every variant

enum class Kind { float32, float16, bfloat16, int8, int4 };

// Columns of an integer activation that share a scale. With int8 weights a section costs 2 operations on top of 16.
constexpr size_t section_of(Kind kind) { return kind == Kind::int8 ? 2 * kGroup : kGroup; }

// A matrix (rows, columns), laid out as kernels/quantized.py says. `scales`: for int8 a float32 per row, for int4 a float16 per
// group.
struct Matrix {
    Kind kind;
    const uint8_t* values;
    const uint8_t* scales;
    size_t rows, columns;

    size_t groups() const { return (columns + kGroup - 1) / kGroup; }
    bool quantised() const { return kind == Kind::int8 || kind == Kind::int4; }
    size_t bytes_of(size_t count) const {  // bytes of `count` columns; int4: rounded up to whole groups
        switch (kind) {
            case Kind::float32: return count * 4;
            case Kind::int8: return count;
            case Kind::int4: return (count + kGroup - 1) / kGroup * (kGroup / 2);
            default: return count * 2;
        }
    }
    size_t row_bytes() const { return bytes_of(columns); }
    Matrix part(size_t begin, size_t end) const {  // rows [begin, end)
        const size_t scales_of_row = kind == Kind::int8 ? 4 : kind == Kind::int4 ? groups() * 2 : 0;
        return {kind, values + begin * row_bytes(), scales + begin * scales_of_row, end - begin, columns};
    }
    float row_scale(size_t row) const { return load_one<Dtype::float32>(scales + row * sizeof(float)); }
};

// x (T, columns) as products read it: in blocks of kBlock columns, each block token by token. Float weights use `values`;
// quantised ones use `codes` and `scales`, one per section. Columns that pad a vector or a section are zero.
struct Activations {
    const float* values;
    const int16_t* codes;
    const float* scales;
    const int32_t* offsets;  // with `codes` of one token for int4: eight times their sums, a vector per section
    // Replace `codes` for prompts; else null. The layout, and that of scales and offsets, is the variant's own
    // (decoder_bytes.inc, decoder_tiles.inc); both have room for kByteFactors per token (in whole groups) and block.
    const uint8_t* bytes;
};

struct ActivationMemory {
    float* values;
    int16_t* codes;
    float* scales;
    int32_t* offsets;
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

// The ops of a plan, with the operands of the functions of these names in kernels/reference.py, by address and size.

struct Embed {
    const int64_t* ids;
    size_t tokens;
    Kind kind;  // of weight (rows, hidden)
    const uint8_t* weight;
    size_t rows, hidden;
    float* out;
};

// rms_norm, the products with `matrices` side by side, rotates q and k, and stores k and v in a cache of type `cache`.
struct QkvRopeStore {
    const float* x;  // (tokens, hidden)
    size_t tokens;
    const float* norm;
    float eps;
    std::vector<Matrix> matrices;
    const float *cos, *sin;  // (turns, dim / 2)
    size_t turns;
    const int64_t* positions;
    Kind cache;
    uint8_t *keys, *values;  // (places, kv_heads, dim)
    size_t places;
    const int64_t* slots;
    size_t heads, kv_heads, dim;
    float* q;               // (tokens, heads, dim)
    bool int8_activations;  // whether activations that meet quantised matrices are rounded to bytes
};

struct LinearAdd {
    const float* x;
    size_t tokens;
    Matrix matrix;
    float* out;
    bool int8_activations;
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

// Queries (T, heads, dim) of sequences whose keys and values are in a cache of blocks (block, kv_heads, dim) of type `kind`. As
// many sequences as queries means that each has one.
struct Attention {
    const float* q;
    const uint8_t *keys, *values;
    Kind kind;
    const int32_t *tables, *starts, *lens;
    size_t tokens, sequences, table_stride, heads, kv_heads, dim, block, blocks;  // `block`: tokens per block; `blocks`: in the cache
    float scale;
    float* out;
    size_t splits;  // the most splits of a context

    size_t row_width() const { return (dim + 31) / 32 * 32; }         // floats: dim rounded up to two of the widest vectors
    size_t part_floats() const { return 16 + row_width(); }  // greatest score, sum of weights, then weighted values
};

// Queries [begin, end) of one sequence, for the heads that share the `kv_heads` key heads from `kv_head` on.
struct Queries {
    size_t sequence, begin, end, kv_head, kv_heads;
};

// The kernels of one instruction set. Scratch memory is aligned to 64 bytes.
struct Kernels {
    const char* name;
    const char* (*why_not)();
    size_t (*task_rows)(const Matrix&, size_t tokens);  // rows of a matrix in one task
    size_t (*product_scratch)();                        // in floats
    void (*product)(const Product&, size_t begin, size_t end, float* scratch);
    void (*prepare)(Kind weights, const float* x, size_t columns, size_t token, size_t tokens, const ActivationMemory& to);
    void (*rms_norm)(const float* x, const float* weight, float eps, size_t size, float* out);
    void (*silu_mul)(const float* gate, const float* up, size_t size, float* out);
    // Attention over splits [first, last) of the context. If `parts` is null the result goes to a.out; else the unfinished
    // softmax goes to part `first` of each row's a.splits parts (see part_floats).
    void (*attend)(const Attention& a, const Queries& what, size_t first, size_t last, float* parts, float* scratch);
    size_t (*attention_scratch)(const Attention&, size_t of_head, size_t kv_heads);  // in floats; of_head: rows per key head
    void (*merge)(const Attention& a, size_t token, const float* parts);  // merges the parts of a token's heads into a.out
    void (*widen)(Kind, const uint8_t* from, size_t count, float* to);
    void (*narrow)(Kind, const float* from, size_t count, uint8_t* to);
};

const std::vector<Kernels>& kernel_variants();  // best first; "scalar" is the last

// Memory aligned to 64 bytes. Growing it discards the contents.
template <class T>
class Buffer {
   public:
    T* data() const { return memory_.get(); }
    void grow(size_t size) {
        if (size <= size_) return;
        memory_.reset();
        size_ = 0;  // in case the next line throws
        memory_.reset(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t{64})));
        size_ = size;
    }

   private:
    struct Free {
        void operator()(T* memory) const { ::operator delete(memory, std::align_val_t{64}); }
    };
    std::unique_ptr<T, Free> memory_;
    size_t size_ = 0;
};

class Plan {
   public:
    explicit Plan(const Kernels& kernels) : kernels_(kernels) {}

    void append(const Embed& op);
    void append(const QkvRopeStore& op);
    void append(const Attention& op);  // sets `splits`
    void append(const LinearAdd& op);
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

    void add(size_t tasks, Work work);
    // Adds the op that lays out x, or its rms_norm if `norm` is given, as products with such a matrix read it.
    void prepare(const float* x, size_t tokens, const Matrix& matrix, bool bytes, const float* norm = nullptr, float eps = 0.0f);
    // Adds the products of what was prepared; they go to the arena's `parts` if y is null.
    void products(size_t tokens, const std::vector<Matrix>& matrices, bool bytes, float* y, size_t ldy, bool add_to);

    const Kernels& kernels_;
    std::atomic<bool> running_{false};
    std::vector<std::unique_ptr<Op>> ops_;
    // the elements that the arena needs in each buffer, and the floats of a thread's scratch memory
    size_t normed_ = 0, parts_ = 0, values_ = 0, codes_ = 0, scales_ = 0, offsets_ = 0, bytes_ = 0, scratch_ = 0;
};

}  // namespace baize
