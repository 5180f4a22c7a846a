// out = round(float32(base) + float32(diff)) with a reproducible sum, in one pass. kernels/reference.py holds the contract.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "element.h"

namespace baize {

constexpr size_t kLanes = 1024;   // float64 accumulators of a chunk, 8 KiB: they stay in the first-level cache
constexpr size_t kChunk = 65536;  // elements whose sum is taken as one, so that threads and pieces do not change it
constexpr int kMaxThreads = 1024;  // libgomp ends the process where it cannot start a thread: refuse absurd numbers

struct Operand {
    const uint8_t* data;
    Dtype dtype;
};

struct Target {
    uint8_t* data;
    Dtype dtype;
};

struct Counts {
    int64_t overflowed = 0;  // finite sums that the target type can only hold as infinity
    int64_t nonfinite = 0;   // sums that are NaN or infinite
};

// One chunk of at most kChunk elements; returns its sum. Called under the default floating-point state.
using ChunkFunction = double (*)(Operand base, Operand diff, Target out, size_t count, bool subtract, Counts& counts);
// float32(values), exact, to any address; only a signalling float16 NaN changes: it becomes quiet.
using WidenFunction = void (*)(Operand values, uint8_t* out, size_t count);

struct Variant {
    const char* name;
    const char* (*why_not)();  // nullptr where this processor can run it
    ChunkFunction chunk;
    WidenFunction widen;
};

// All variants of this build, best first; the last runs everywhere.
const std::vector<Variant>& variants();

// The first variant without objection.
const Variant& best_variant();

// The whole array in chunks dealt to at most `threads`; `chunk_sums` has one entry a chunk. The result does not depend on
// `threads`.
Counts diff_add(const Variant& variant, Operand base, Operand diff, Target out, size_t count, bool subtract, int threads,
                double* chunk_sums);

struct FileOperand {
    const char* name;  // of the argument
    int fd;
    int64_t offset;
    Dtype dtype;
};

// Which operand could not be read, and the system's error number: 0 where its file ends too early.
struct Unread {
    const char* name;
    int error;
};

// diff_add on the calling thread, of operands that lie in files. It reads and adds chunk by chunk, so that what was read is
// still in the processor's cache.
std::optional<Unread> diff_add_files(const Variant& variant, const FileOperand& base, const FileOperand& diff, Target out,
                                     size_t count, bool subtract, double* chunk_sums, Counts& counts);

// sums[c] += rows[r][c] for every row in order, in float64.
void add_rows(double* sums, size_t columns, Operand rows, size_t count);

}  // namespace baize
