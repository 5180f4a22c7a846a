// AVX-512 (F, BW, DQ, VL, VNNI).
#include "csrc/isa/implementations.h"

#if BAIZE_X86

#define BAIZE_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#include "csrc/cpu.h"
#include "csrc/isa/avx512.h"
// the vector type first, because the algorithms use it
#include "csrc/generic/byte_tiles.h"
#include "csrc/isa/own_kernels.h"

namespace baize {

namespace {

// AVX-512 VNNI: multiplies four columns of a row, copied to every lane, by those of sixteen tokens. The loads
// of these copies bound it, one for each multiplication; rows and groups stay where byte_tiles.h says, totals
// in registers and sums in the L1 cache.
struct VnniEngine {
    BAIZE_TARGET static void start() {}
    BAIZE_TARGET static void stop() {}

    // Not inlined: GCC would hoist the rows' addresses out of the loop, and there are more of them than
    // registers.
    BAIZE_TARGET __attribute__((noinline)) static void run(const TileAt& at, size_t sections, F* sums) {
        const uint8_t* w = at.w;
        const int8_t* x = at.x;
        for (size_t s = 0; s < sections; ++s, w += kSection) {
            const auto beginning = Vec::load_total(at.beginnings + s * kGroupTokens);
            typename Vec::I totals[kTileRows];
#pragma GCC unroll 16
            for (size_t r = 0; r < kTileRows; ++r) totals[r] = beginning;
            for (size_t k = 0; k < kSection; k += 4, x += 64) {
                const auto tokens = Vec::load_bytes(x);
#pragma GCC unroll 16
                for (size_t r = 0; r < kTileRows; ++r)
                    totals[r] = Vec::add_quads(totals[r], Vec::all_quads(w + r * kTileStride + k), tokens);
            }
            const F scale = Vec::load(at.scales + s * kGroupTokens);
#pragma GCC unroll 16
            for (size_t r = 0; r < kTileRows; ++r)
                sums[r] = Vec::fma(Vec::to_float(totals[r]), scale, sums[r]);
            __asm__("" ::: "memory");  // keeps the sums in place: GCC would also copy them to the stack
        }
    }
};

}  // namespace

const char* why_not_avx512() {
    const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx2") &&
                     __builtin_cpu_supports("fma") && has_f16c();
    return has ? nullptr : "this processor lacks AVX-512 F, BW, DQ, VL or VNNI, or AVX2, FMA or F16C";
}

Implementation avx512_implementation() {
    return own_kernels("avx512", why_not_avx512, kByteTiles<VnniEngine>);
}

}  // namespace baize

#endif
