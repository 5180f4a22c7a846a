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

    // What prepare() laid out; with several segments, of the one at `place`, which take `each` of the room.
    Activations activations(size_t place = 0, const Room& each = {}) const {
        return {
            .values = values.data() + place * each.values,
            .codes = codes.data() + place * each.codes,
            .scales = scales.data() + place * each.scales,
            .starts = starts.data() + place * each.starts,
            .bytes = bytes.data() + place * each.bytes,
        };
    }
    ActivationMemory memory(size_t place, const Room& each) const {
        return {
            .values = values.data() + place * each.values,
            .codes = codes.data() + place * each.codes,
            .scales = scales.data() + place * each.scales,
            .starts = starts.data() + place * each.starts,
            .bytes = bytes.data() + place * each.bytes,
        };
    }
};

}  // namespace baize
