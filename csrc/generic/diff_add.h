// The addition of one chunk, over the vector type `Vec` of the file that includes this.
//
// Each element is read, added and written once, so that the memory's speed bounds it. The kLanes float64
// accumulators (8 KiB) stay in the L1 cache; element i of every kLanes goes to lane i, whatever the vector's
// width, so that the sums are the same.
#pragma once

#include "csrc/diff_add.h"

namespace baize {

namespace {

// The smallest magnitude (as bits) that rounds to infinity: 65520 for float16, the tie above the largest
// bfloat16.
template <Dtype D>
constexpr uint32_t overflow_limit() {
    return D == Dtype::float16 ? 0x477ff000u : D == Dtype::bfloat16 ? 0x7f7f8000u : 0x7f800000u;
}

inline void count_one(uint32_t magnitude, uint32_t limit, Counts& counts) {
    if (magnitude >= 0x7f800000u)
        ++counts.nonfinite;
    else if (magnitude >= limit)
        ++counts.overflowed;
}

BAIZE_TARGET inline double fold(double* lanes) {
    for (size_t width = kLanes / 2; width > 0; width /= 2)
        for (size_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

template <Dtype B, Dtype D, Dtype O, bool Subtract>
BAIZE_TARGET double chunk_of(const Addition& what, Counts& counts) {
    constexpr size_t sb = itemsize(B), sd = itemsize(D), so = itemsize(O);
    constexpr uint32_t limit = overflow_limit<O>();
    const size_t count = what.count;
    alignas(64) double lanes[kLanes] = {};
    for (size_t row = 0; row < count; row += kLanes) {
        const size_t width = count - row < kLanes ? count - row : kLanes;
        const uint8_t* b = what.base.data + row * sb;
        const uint8_t* d = what.diff.data + row * sd;
        uint8_t* o = what.out.data + row * so;
        size_t i = 0;
        for (; i + Vec::width <= width; i += Vec::width) {
            const auto left = Vec::template load_as<B>(b + i * sb);
            const auto right = Vec::template load_as<D>(d + i * sd);
            const auto sum = Vec::canonical(Subtract ? Vec::subtract(right, left) : Vec::add(left, right));
            Vec::template store_as<O>(o + i * so, sum);
            Vec::accumulate(lanes + i, sum);
            if (Vec::any_at_least(sum, limit)) {
                float each[Vec::width];
                Vec::store(each, sum);
                for (float one : each) count_one(bits_of(one) & 0x7fffffffu, limit, counts);
            }
        }
        for (; i < width; ++i) {
            const float left = load_one<B>(b + i * sb), right = load_one<D>(d + i * sd);
            const float sum = canonical(Subtract ? right - left : left + right);
            store_one<O>(o + i * so, sum);
            lanes[i] += sum;
            count_one(bits_of(sum) & 0x7fffffffu, limit, counts);
        }
    }
    return fold(lanes);
}

template <Dtype B, Dtype D, Dtype O>
double chunk_signed(const Addition& what, Counts& counts) {
    return what.subtract ? chunk_of<B, D, O, true>(what, counts) : chunk_of<B, D, O, false>(what, counts);
}

template <Dtype B, Dtype D>
double chunk_to(const Addition& what, Counts& counts) {
    switch (what.out.dtype) {
        case Dtype::float32: return chunk_signed<B, D, Dtype::float32>(what, counts);
        case Dtype::float16: return chunk_signed<B, D, Dtype::float16>(what, counts);
        default: return chunk_signed<B, D, Dtype::bfloat16>(what, counts);
    }
}

template <Dtype B>
double chunk_with(const Addition& what, Counts& counts) {
    switch (what.diff.dtype) {
        case Dtype::float32: return chunk_to<B, Dtype::float32>(what, counts);
        case Dtype::float16: return chunk_to<B, Dtype::float16>(what, counts);
        default: return chunk_to<B, Dtype::bfloat16>(what, counts);
    }
}

double add_chunk(const Addition& what, Counts& counts) {
    switch (what.base.dtype) {
        case Dtype::float32: return chunk_with<Dtype::float32>(what, counts);
        case Dtype::float16: return chunk_with<Dtype::float16>(what, counts);
        default: return chunk_with<Dtype::bfloat16>(what, counts);
    }
}

}  // namespace

}  // namespace baize
