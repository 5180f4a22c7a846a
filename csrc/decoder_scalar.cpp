// Plain C++, four floats at a time as any processor's compiler can have them.
#include <cmath>

#include "decoder_variants.h"

#define BAIZE_TARGET

namespace {

constexpr size_t SINGLE_ROWS = 4, PANEL_ROWS = 24, ROWS = 3, TOKENS = 4, CODE_ROWS = 2, CODE_TOKENS = 4, BYTE_ROWS = 2, BYTE_TOKENS = 2;

struct Vec {
    static constexpr size_t width = 4, shorts = 8;
    struct F {
        float lanes[width];
    };
    struct I {
        int32_t lanes[width];
    };
    struct S {
        int16_t lanes[shorts];
    };

    template <class What>
    static F each(What what) {
        F out;
        for (size_t n = 0; n < width; ++n) out.lanes[n] = what(n);
        return out;
    }
    static F zero() { return all(0.0f); }
    static F all(float value) { return each([=](size_t) { return value; }); }
    static F load(const float* at) { return each([=](size_t n) { return at[n]; }); }
    static void store(float* at, F value) {
        for (size_t n = 0; n < width; ++n) at[n] = value.lanes[n];
    }
    static F fma(F a, F b, F c) { return each([&](size_t n) { return a.lanes[n] * b.lanes[n] + c.lanes[n]; }); }
    static F add(F a, F b) { return each([&](size_t n) { return a.lanes[n] + b.lanes[n]; }); }
    static F mul(F a, F b) { return each([&](size_t n) { return a.lanes[n] * b.lanes[n]; }); }
    static F div(F a, F b) { return each([&](size_t n) { return a.lanes[n] / b.lanes[n]; }); }
    static F greater(F a, F b) { return each([&](size_t n) { return b.lanes[n] > a.lanes[n] ? b.lanes[n] : a.lanes[n]; }); }
    static F lesser(F a, F b) { return each([&](size_t n) { return b.lanes[n] < a.lanes[n] ? b.lanes[n] : a.lanes[n]; }); }
    static float sum(F v) { return (v.lanes[0] + v.lanes[2]) + (v.lanes[1] + v.lanes[3]); }
    static F nearest(F value) { return each([&](size_t n) { return std::nearbyint(value.lanes[n]); }); }
    static F times_power(F value, F power) {
        return each([&](size_t n) { return std::ldexp(value.lanes[n], std::isnan(power.lanes[n]) ? 0 : int(power.lanes[n])); });
    }

    template <baize::Dtype D>
    static F load_as(const uint8_t* at) {
        return each([=](size_t n) { return baize::load_one<D>(at + n * baize::itemsize(D)); });
    }

    template <baize::Dtype D>
    static void store_as(uint8_t* at, F value) {
        for (size_t n = 0; n < width; ++n) baize::store_one<D>(at + n * baize::itemsize(D), value.lanes[n]);
    }
    static F magnitude(F value) { return each([&](size_t n) { return std::fabs(value.lanes[n]); }); }
    static float greatest(F value) {
        float most = value.lanes[0];
        for (float lane : value.lanes) most = lane > most ? lane : most;
        return most;
    }
    static F sums(const F* v) { return each([=](size_t n) { return sum(v[n]); }); }

    static void transpose(const float* from, size_t from_stride, float* to, size_t to_stride) {  // to[k][n] = from[n][k]
        for (size_t k = 0; k < width; ++k)
            for (size_t n = 0; n < width; ++n) to[k * to_stride + n] = from[n * from_stride + k];
    }

    static I no_total() { return {}; }
    static S load_shorts(const int16_t* at) {
        S value;
        std::memcpy(value.lanes, at, sizeof(value));
        return value;
    }
    static void store_shorts(int16_t* at, S value) { std::memcpy(at, value.lanes, sizeof(value)); }
    static S load_codes(const uint8_t* at) {
        S value;
        for (size_t n = 0; n < shorts; ++n) value.lanes[n] = int8_t(at[n]);
        return value;
    }
    static I products(S a, S b) { return add_products(no_total(), a, b); }
    static I add_products(I total, S a, S b) {
        for (size_t n = 0; n < shorts; ++n) total.lanes[n / 2] += int32_t(a.lanes[n]) * b.lanes[n];
        return total;
    }
    static I subtract(I a, I b) {
        for (size_t n = 0; n < width; ++n) a.lanes[n] -= b.lanes[n];
        return a;
    }
    static I load_total(const int32_t* at) {
        I total;
        std::memcpy(total.lanes, at, sizeof(total));
        return total;
    }
    static void store_total(int32_t* at, I value) { std::memcpy(at, value.lanes, sizeof(value)); }
    static F to_float(I total) { return each([&](size_t n) { return float(total.lanes[n]); }); }

    static S stored(const uint8_t* group, size_t part) {  // with 8 added, columns in order
        S codes;
        for (size_t n = 0; n < shorts; ++n) {
            const size_t column = part * shorts + n, half = baize::kGroup / 2;
            codes.lanes[n] = column < half ? group[column] & 15 : group[column - half] >> 4;
        }
        return codes;
    }
    static S nibbles(const uint8_t* group, size_t part) {
        S codes = stored(group, part);
        for (int16_t& lane : codes.lanes) lane = int16_t(lane - 8);
        return codes;
    }
    static I dot4(const uint8_t* group, const S* values) {  // of the codes with 8 added, as they are stored
        I total{};
        for (size_t n = 0; n < baize::kGroup / shorts; ++n) total = add_products(total, stored(group, n), values[n]);
        return total;
    }
    static I eight_times(const int16_t* x) {
        I total{};
        for (size_t n = 0; n < baize::kGroup; ++n) total.lanes[n % shorts / 2] += 8 * x[n];
        return total;
    }
    static void widen4(const uint8_t* group, int16_t* to) {
        for (size_t n = 0; n < baize::kGroup / shorts; ++n) store_shorts(to + n * shorts, nibbles(group, n));
    }
    // A section of x in the order of the matrix's codes.
    template <baize::Kind K>
    static void encode(const float* x, F inverse, int16_t* codes) {
        for (size_t k = 0; k < baize::section_of(K); ++k) codes[k] = int16_t(std::lrintf(x[k] * inverse.lanes[0]));
    }

    struct B {
        uint8_t lanes[16];
    };
    using P = I;  // four sums of four products
    static constexpr size_t bytes = 16;
    static B load_bytes(const void* at) {
        B value;
        std::memcpy(value.lanes, at, sizeof(value));
        return value;
    }
    static B all_bytes(int8_t value) {
        B all;
        std::memset(all.lanes, value, sizeof(all));
        return all;
    }
    static P pairs(B codes, B weights) {
        P total{};
        for (size_t n = 0; n < bytes; ++n) total.lanes[n / 4] += int32_t(codes.lanes[n]) * int8_t(weights.lanes[n]);
        return total;
    }
    static P add_pairs(P a, P b) { return plus(a, b); }
    static I total(P sums) { return sums; }
    static I plus(I a, I b) {
        for (size_t n = 0; n < width; ++n) a.lanes[n] += b.lanes[n];
        return a;
    }
    static bool fit(B, B) { return true; }
    static void bytes4(const uint8_t* group, int8_t* to) {  // a group of int4, columns in order
        for (size_t n = 0; n < baize::kGroup / 2; ++n) {
            to[n] = int8_t((group[n] & 15) - 8);
            to[baize::kGroup / 2 + n] = int8_t((group[n] >> 4) - 8);
        }
    }
    static void encode_bytes(const float* x, F inverse, int zero, uint8_t* codes) {
        for (size_t n = 0; n < bytes; ++n) codes[n] = uint8_t(std::lrintf(x[n] * inverse.lanes[0]) + zero);
    }
};

}  // namespace

#include "decoder_product.inc"
// the products first: attention uses their vectors
#include "decoder_attention.inc"
#include "decoder_elementwise.inc"

namespace baize {

Kernels scalar_kernels() {
    const auto why_not = []() -> const char* { return nullptr; };
    return {"scalar", why_not, task_rows, product_scratch, product, prepare, rms_norm, silu_mul, attend, attention_scratch, merge, widen_row, narrow_row};
}

}  // namespace baize
