// The memory for intermediate results of a plan.
#pragma once

#include "csrc/buffer.h"
#include "csrc/plan.h"

namespace baize {

// Belongs to the thread that calls run(), and all plans that the thread runs share it.
struct Plan::Arena {
    Buffer<float> normed, parts, values, scales;
    Buffer<int16_t> codes;
    Buffer<int32_t> starts;
    Buffer<uint8_t> bytes;
    std::vector<Buffer<float>> scratch;  // one per thread of the team

    Activations activations() const {
        return {
            .values = values.data(),
            .codes = codes.data(),
            .scales = scales.data(),
            .starts = starts.data(),
            .bytes = bytes.data(),
        };
    }
    ActivationMemory memory() const {
        return {
            .values = values.data(),
            .codes = codes.data(),
            .scales = scales.data(),
            .starts = starts.data(),
            .bytes = bytes.data(),
        };
    }
};

}  // namespace baize
