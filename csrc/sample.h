// Choosing a token from a row of logits: `sample` and `advance` of kernels/reference.py, which defines them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace baize {

constexpr size_t kBestBlock = 32;  // BEST_BLOCK of kernels/reference.py

inline uint32_t mix(uint32_t x) {  // `mix` of kernels/reference.py
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

// Arguments of `sample`, one value for each row. The positions are in `narrow` (int32) unless it is null,
// else in `positions`.
struct Sample {
    const float* logits;  // (rows, vocabulary)
    const int32_t* best;  // (rows, blocks), as `head` leaves it; or null
    size_t rows, vocabulary;
    const float* temperature;
    const int64_t* top_k;
    const float *top_p, *min_p;
    const int64_t *seeds, *sample_index, *positions;
    const int32_t* narrow;
    int64_t* out;

    size_t blocks() const { return (vocabulary + kBestBlock - 1) / kBestBlock; }
};

// Arguments of `advance`.
struct Advance {
    const int64_t* tokens;
    size_t rows;
    int64_t *ids, *positions, *slots;
    int32_t *lens, *left;
    const int64_t* stops;
    size_t stops_of_row;
    const int32_t* tables;
    size_t table_stride;
    int64_t block;
};

// Loops over a vocabulary, for one instruction set; all give the same bits.
struct SampleKernels {
    // Writes the greatest logit of each block, -0 as 0; returns false if a logit is not finite.
    bool (*maxima)(const float* logits, size_t size, float* greatest);
    void (*scale)(const float* logits, size_t size, float temperature, float* scaled);  // at least -FLT_MAX
    // Writes the weights exp(x - top), rounded to multiples of 2^-34, of which 2^19 add up exactly; returns
    // their sum.
    double (*weigh)(const float* x, size_t size, double top, double* weights);
    // Writes the 23 random bits of each of kBestBlock ids from `first` on; returns whether any is at least
    // `limit`.
    bool (*draw)(uint32_t row_hash, uint32_t first, uint32_t limit, uint32_t* bits);
};

size_t sample_scratch(const Sample&);  // floats of scratch memory, to be aligned to 64 bytes
void sample(const Sample&, const SampleKernels&, size_t row, float* scratch);
void advance(const Advance&, size_t row);  // std::out_of_range if a row has no block for its next position

}  // namespace baize
