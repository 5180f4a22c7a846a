// out = round(float32(base) + float32(diff)) and a reproducible sum, in one pass. kernels/reference.py
// defines the result.
#pragma once

#include <cstdint>
#include <optional>

#include "csrc/element.h"

namespace baize {

struct Implementation;

constexpr size_t kLanes = 1024;  // float64 accumulators of a chunk: 8 KiB, which stay in the L1 cache
// Elements that are summed together, so that neither threads nor pieces change the sum.
constexpr size_t kChunk = 65536;

// What is added: `count` elements; diff - base with `subtract`.
struct Addition {
    Operand base, diff;
    Target out;
    size_t count;
    bool subtract;

    size_t chunks() const { return (count + kChunk - 1) / kChunk; }
    Addition chunk(size_t n) const {
        const size_t begin = n * kChunk, left = count - begin;
        return {base.from(begin), diff.from(begin), out.from(begin), left < kChunk ? left : kChunk, subtract};
    }
};

struct Counts {
    int64_t overflowed = 0;  // finite sums that become infinite in the target type
    int64_t nonfinite = 0;  // sums that are NaN or infinite
};

// Adds a whole array, in chunks dealt to at most `threads` threads, on which the result does not depend.
// `chunk_sums` has one entry for each chunk.
Counts diff_add(const Implementation& by, const Addition& what, int threads, double* chunk_sums);

struct FileOperand {
    int fd;
    int64_t offset;
    Dtype dtype;
};

struct FileAddition {
    FileOperand base, diff;
    Target out;
    size_t count;
    bool subtract;
};

// The operand that could not be read, and the system's error number: 0 where its file ends too early.
struct Unread {
    const FileOperand* operand;
    int error;
};

// diff_add of operands in files, on the calling thread. Reads and adds chunk by chunk, while the data is in
// the processor's cache.
std::optional<Unread> diff_add_files(const Implementation& by, const FileAddition& what, double* chunk_sums,
                                     Counts& counts);

// sums[c] += rows[r][c] for every row r in order, in float64.
void add_rows(double* sums, size_t columns, Operand rows, size_t count);

}  // namespace baize
