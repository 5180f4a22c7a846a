// out = round(float32(base) + float32(diff)) and a reproducible sum, in one pass. kernels/reference.py defines the result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "element.h"

namespace baize {

constexpr size_t kLanes = 1024;   // float64 accumulators of a chunk: 8 KiB, which stay in the L1 cache
constexpr size_t kChunk = 65536;  // elements that are summed together, so that neither threads nor pieces change the sum
constexpr int kMaxThreads = 1024;  // libgomp ends the process if it cannot start a thread, so absurd numbers are refused

struct Operand {
    const uint8_t* data;
    Dtype dtype;
};

struct Target {
    uint8_t* data;
    Dtype dtype;
};

struct Counts {
    int64_t overflowed = 0;  // finite sums that become infinite in the target type
    int64_t nonfinite = 0;   // sums that are NaN or infinite
};

// One chunk of at most kChunk elements; returns its sum. Called under the default floating-point state.
using ChunkFunction = double (*)(Operand base, Operand diff, Target out, size_t count, bool subtract, Counts& counts);
// Writes float32(values), exactly, to any address. Only a signalling float16 NaN changes: it becomes quiet.
using WidenFunction = void (*)(Operand values, uint8_t* out, size_t count);

struct Variant {
    const char* name;
    const char* (*why_not)();  // why this processor cannot run it; nullptr if it can
    ChunkFunction chunk;
    WidenFunction widen;
};

// All variants of this build, the best first. The last one runs on every processor.
const std::vector<Variant>& variants();

// The first variant that this processor can run.
const Variant& best_variant();

// Adds a whole array, in chunks dealt to at most `threads` threads, on which the result does not depend. `chunk_sums` has one
// entry for each chunk.
Counts diff_add(const Variant& variant, Operand base, Operand diff, Target out, size_t count, bool subtract, int threads,
                double* chunk_sums);

struct FileOperand {
    int fd;
    int64_t offset;
    Dtype dtype;
};

// The operand that could not be read, and the system's error number: 0 where its file ends too early.
struct Unread {
    const FileOperand* operand;
    int error;
};

// diff_add of operands in files, on the calling thread. Reads and adds chunk by chunk, while the data is in the processor's
// cache.
std::optional<Unread> diff_add_files(const Variant& variant, const FileOperand& base, const FileOperand& diff, Target out,
                                     size_t count, bool subtract, double* chunk_sums, Counts& counts);

// sums[c] += rows[r][c] for every row r in order, in float64.
void add_rows(double* sums, size_t columns, Operand rows, size_t count);

}  // namespace baize
