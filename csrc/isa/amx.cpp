// AMX: one instruction computes 64 columns of a tile of generic/byte_tiles.h, or a block of int4 rows and 16
// tokens of generic/int4_tile.h. All else is AVX-512's.
#include "csrc/isa/implementations.h"

#if BAIZE_AMX

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#define BAIZE_TARGET \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,amx-tile,amx-int8")))
#include "csrc/isa/avx512.h"
// the vector type first, because the algorithms use it
#include "csrc/generic/byte_tiles.h"
#include "csrc/generic/int4_product.h"

namespace baize {

namespace {

// GCC does not know which memory its intrinsics read; this keeps it from delaying or dropping earlier stores.
void written(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// A tile of totals for 16 rows and 16 tokens takes two loads of operands for each multiplication, from the L1
// and L2 caches, which bound it together with turning totals into sums; byte_tiles.h says what stays where.
struct AmxEngine {
    BAIZE_TARGET static void start() {
        TileConfig config;
        for (size_t tile = 0; tile < 3; ++tile) config.row_bytes[tile] = 64, config.rows[tile] = 16;
        written(&config);
        _tile_loadconfig(&config);
    }
    BAIZE_TARGET static void stop() { _tile_release(); }

    BAIZE_TARGET static void make(const TileAt& at, size_t s, int32_t* totals) {
        _tile_loadd(0, at.beginnings + s * kGroupTokens, 0);
#pragma GCC unroll 2
        for (size_t k = 0; k < kSection; k += 64) {
            _tile_loadd(1, at.w + s * kSection + k, kTileStride);
            _tile_loadd(2, at.x + (s * kSection + k) * kGroupTokens, 64);
            _tile_dpbusd(0, 1, 2);
        }
        _tile_stored(0, totals, 64);
    }

    // Computes a section's totals, then adds those of the section before: the processor overlaps the two.
    BAIZE_TARGET static void run(const TileAt& at, size_t sections, F* sums) {
        alignas(64) int32_t totals[2][kTileRows * kGroupTokens];
        F own[kTileRows];
#pragma GCC unroll 16
        for (size_t r = 0; r < kTileRows; ++r) own[r] = sums[r];
        written(at.w);
        make(at, 0, totals[0]);
        for (size_t s = 0; s < sections; ++s) {
            if (s + 1 < sections) make(at, s + 1, totals[(s + 1) % 2]);
            const F scale = Vec::load(at.scales + s * kGroupTokens);
#pragma GCC unroll 16
            for (size_t r = 0; r < kTileRows; ++r)
                own[r] =
                    Vec::fma(Vec::to_float(Vec::load_total(totals[s % 2] + r * kGroupTokens)), scale, own[r]);
        }
#pragma GCC unroll 16
        for (size_t r = 0; r < kTileRows; ++r) sums[r] = own[r];
    }
};

// Sums of a block: 16 tokens' codes (tile 2) times kInt4Vectors vectors of rows (tiles 3 and 4), whose quads
// are rows of a tile as they lie. What is done with the sums, four operations a vector, bounds it.
struct AmxInt4 {
    static constexpr size_t tokens = 16;
    static_assert(kInt4Vectors == 2);

    BAIZE_TARGET static void start() {
        TileConfig config;
        for (size_t tile = 0; tile < 5; ++tile) {
            config.row_bytes[tile] = tile == 2 ? kInt4Block : 64;
            config.rows[tile] = tile < 3 ? tokens : kQuads;
        }
        written(&config);
        _tile_loadconfig(&config);
    }
    BAIZE_TARGET static void stop() { _tile_release(); }

    BAIZE_TARGET static void make(const UnpackedRows& rows, const Int4Tokens<1>& x, size_t block,
                                  int32_t (*totals)[tokens * Vec::width]) {
        const auto& quads = rows.blocks[block].quads;
        _tile_zero(0);
        _tile_zero(1);
        _tile_loadd(2, x.quad(0, 0, block, 0), kChunk);
        _tile_loadd(3, &quads[0][0], sizeof quads[0]);
        _tile_dpbsud(0, 2, 3);
        _tile_loadd(4, &quads[0][1], sizeof quads[0]);
        _tile_dpbsud(1, 2, 4);
        _tile_stored(0, totals[0], 64);
        _tile_stored(1, totals[1], 64);
    }

    // Computes a block's totals, then adds those of the block before: the processor overlaps the two.
    BAIZE_TARGET static void run(const UnpackedRows& rows, const Int4Tokens<1>& x, size_t blocks, F* sums) {
        alignas(64) int32_t totals[2][kInt4Vectors][tokens * Vec::width];
        alignas(64) F group[tokens][kInt4Vectors];
        written(rows.blocks);
        make(rows, x, 0, totals[0]);
        for (size_t block = 0; block < blocks; ++block) {
            if (block + 1 < blocks) make(rows, x, block + 1, totals[(block + 1) % 2]);
            const bool last = block % 2 == 1 || block + 1 == blocks;
            for (size_t r = 0; r < kInt4Vectors; ++r) {
                const F scale = rows.scale(block, r);
#pragma GCC unroll 16
                for (size_t t = 0; t < tokens; ++t) {
                    const auto total = Vec::load_total(totals[block % 2][r] + t * Vec::width);
                    const auto start = rows.start(block, r, x.start(t, 0, block));
                    const F value = Vec::to_float(Vec::plus(total, start));
                    const F sum =
                        block % 2 == 0 ? Vec::mul(value, scale) : Vec::fma(value, scale, group[t][r]);
                    F& own = sums[t * kInt4Vectors + r];
                    if (last)
                        own = Vec::fma(sum, Vec::all(x.scales[t * kChunkGroups + block / 2]), own);
                    else
                        group[t][r] = sum;
                }
            }
        }
    }
};

constexpr int kTileData = 18;  // XFEATURE_XTILEDATA, the state that Linux grants on request
constexpr int kGetSupported = 0x1021, kRequest = 0x1023;  // ARCH_GET_XCOMP_SUPP, ARCH_REQ_XCOMP_PERM

const char* why_no_tiles() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & (1u << 24)) || !(d & (1u << 25)))
        return "this processor lacks AMX with 8-bit integers";
    uint64_t supported = 0;
    const bool known = syscall(SYS_arch_prctl, kGetSupported, &supported) == 0;
    return known && supported >> kTileData & 1 ? nullptr : "the system does not offer AMX";
}

const char* why_not() {
    if (const char* reason = why_not_avx512()) return reason;
    static const char* const reason = why_no_tiles();
    return reason;
}

// For all threads, those that run already too.
const char* request() {
    static const int error = syscall(SYS_arch_prctl, kRequest, kTileData) == 0 ? 0 : errno;
    if (error == 0) return nullptr;
    return error == ENOSPC ? "a thread's signal stack is too small for AMX's registers"
                           : "the system refuses AMX's registers";
}

}  // namespace

Implementation amx_implementation() {
    Implementation row = avx512_implementation();
    row.name = "amx";
    row.why_not = why_not;
    row.request = request;
    row.byte_product = kByteTiles<AmxEngine>;
    row.int4_product = kInt4Product<false, AmxInt4>;
    return row;
}

}  // namespace baize

#endif
