// The vector type of portable C++: four floats, eight codes or 16 bytes, which GCC and Clang compile to
// whatever the processor has.
#pragma once

#include <cmath>
#include <cstring>

#include "csrc/product.h"

namespace baize {

namespace {

// Rows and tokens of register blocks.
struct Blocks {
    static constexpr size_t single_rows = 2, panel_rows = 24, float_rows = 2, float_tokens = 2;
    static constexpr size_t int8_rows = 1, code_tokens = 2, byte_rows = 1, byte_tokens = 2;
    static constexpr size_t few_at_once = 4;  // tokens of int8 that one register block may take
    static constexpr size_t few_of_int8 = 16;  // tokens up to which int8 rows are read in place
    // of int4: vectors of rows and tokens of a register block, and the same for the most tokens that need no
    // unpacked rows
    static constexpr size_t int4_vectors = 1, int4_tokens = 2, few_int4_vectors = 1, few_int4_tokens = 2;
};

struct Vec {
    static constexpr size_t width = 4, shorts = 8;
    static constexpr bool widens_halves = false;  // whether a load of float16 is an instruction
    typedef float F __attribute__((vector_size(16)));
    typedef int32_t I __attribute__((vector_size(16)));
    typedef int16_t S __attribute__((vector_size(16)));
    typedef uint16_t Halves __attribute__((vector_size(8)));

    template <size_t N>
    using Ints [[gnu::vector_size(N * 4)]] = int32_t;

    template <class V>
    static V get(const void* at) {
        V value;
        std::memcpy(&value, at, sizeof(value));
        return value;
    }
    template <class What>
    static F each(What what) {
        F out{};
        for (size_t n = 0; n < width; ++n) out[n] = what(n);
        return out;
    }
    static F zero() { return F{}; }
    static F all(float value) { return F{value, value, value, value}; }
    static F load(const float* at) { return get<F>(at); }
    static void store(float* at, F value) { std::memcpy(at, &value, sizeof(value)); }
    static F fma(F a, F b, F c) { return a * b + c; }
    static F add(F a, F b) { return a + b; }
    static F subtract(F a, F b) { return a - b; }
    static F mul(F a, F b) { return a * b; }
    static F div(F a, F b) { return a / b; }
    static F greater(F a, F b) { return b > a ? b : a; }  // returns the second operand, a, if one is NaN
    static F lesser(F a, F b) { return b < a ? b : a; }
    static float sum(F v) { return (v[0] + v[2]) + (v[1] + v[3]); }
    static F nearest(F value) {
        return each([&](size_t n) { return std::nearbyint(value[n]); });
    }
    static F times_power(F value, F power) {
        return each([&](size_t n) { return std::ldexp(value[n], std::isnan(power[n]) ? 0 : int(power[n])); });
    }

    template <Dtype D>
    static F load_as(const uint8_t* at) {
        if constexpr (D == Dtype::float32) return get<F>(at);
        const I half = __builtin_convertvector(get<Halves>(at), I);
        if constexpr (D == Dtype::bfloat16) return F(half << 16);
        // As half_to_float, without branches; a subnormal times 2^-24 is exact, and normal as a float32.
        const I magnitude = half & 0x7fff;
        const I tiny = I(__builtin_convertvector(magnitude, F) * 0x1p-24f);
        const I normal = (magnitude << 13) + (112 << 23);
        const I special = (magnitude << 13) | 0x7f800000 | ((magnitude > 0x7c00) & 0x400000);
        const I bits = magnitude < 0x400 ? tiny : magnitude < 0x7c00 ? normal : special;
        return F(bits | ((half & 0x8000) << 16));
    }

    template <Dtype D>
    static void store_as(uint8_t* at, F value) {
        for (size_t n = 0; n < width; ++n) store_one<D>(at + n * itemsize(D), value[n]);
    }
    static uint16_t to_half(float value) { return float_to_half(value); }
    static float from_half(uint16_t half) { return half_to_float(half); }

    // For diff_add: NaNs made one, the sum of each lane in float64, whether a magnitude (as bits) is at least
    // `limit`.
    static F canonical(F value) { return value != value ? all(float_of(0x7fc00000u)) : value; }
    static void accumulate(double* lanes, F value) {
        for (size_t n = 0; n < width; ++n) lanes[n] += double(value[n]);
    }
    static bool any_at_least(F value, uint32_t limit) {
        const I less = I(magnitude(value)) < I{} + int32_t(limit);
        return (less[0] & less[1] & less[2] & less[3]) == 0;
    }

    static F magnitude(F value) { return F(I(value) & 0x7fffffff); }
    static float greatest(F value) {
        float most = value[0];
        for (size_t n = 1; n < width; ++n) most = value[n] > most ? value[n] : most;
        return most;
    }
    static F sums(const F* v) {
        return each([=](size_t n) { return sum(v[n]); });
    }
    static void transpose(F (&rows)[width]) {  // rows[k][n] = the previous rows[n][k]
        alignas(64) float from[width][width], to[width];
        for (size_t n = 0; n < width; ++n) store(from[n], rows[n]);
        for (size_t k = 0; k < width; ++k) {
            for (size_t n = 0; n < width; ++n) to[n] = from[n][k];
            rows[k] = load(to);
        }
    }

    static I no_total() { return I{}; }
    static S load_shorts(const int16_t* at) { return get<S>(at); }
    static void store_shorts(int16_t* at, S value) { std::memcpy(at, &value, sizeof(value)); }
    static S load_codes(const uint8_t* at) {
        S value{};
        for (size_t n = 0; n < shorts; ++n) value[n] = int8_t(at[n]);
        return value;
    }
    static I products(S a, S b) {
        const auto products = __builtin_convertvector(a, Ints<8>) * __builtin_convertvector(b, Ints<8>);
        I halves[2];
        std::memcpy(halves, &products, sizeof(halves));
        return halves[0] + halves[1];
    }
    static I add_products(I total, S a, S b) { return total + products(a, b); }
    static I load_total(const int32_t* at) { return get<I>(at); }
    static void store_total(int32_t* at, I value) { std::memcpy(at, &value, sizeof(value)); }
    static I all_totals(int32_t value) { return I{value, value, value, value}; }
    static F to_float(I total) { return __builtin_convertvector(total, F); }
    static I to_int(F value) {
        I out{};
        for (size_t n = 0; n < width; ++n) out[n] = int32_t(std::lrintf(value[n]));
        return out;
    }

    static void encode(const float* x, F inverse, int16_t* codes) {
        for (size_t k = 0; k < kSection; ++k) codes[k] = int16_t(std::lrintf(x[k] * inverse[0]));
    }

    // int4 (generic/int4_tile.h): the four columns of a lane, each widened.
    struct Quads {
        I columns[4];
    };
    using Odd = I;
    static constexpr int quad_bias = 0;
    static void unpack_quads(const uint8_t* at, Quads& low, Quads& high) {
        for (size_t j = 0; j < 4; ++j) {
            const uint8_t *a = at + j, *b = a + 4, *c = b + 4, *d = c + 4;
            low.columns[j] =
                I{kInt4Values[*a & 15], kInt4Values[*b & 15], kInt4Values[*c & 15], kInt4Values[*d & 15]};
            high.columns[j] =
                I{kInt4Values[*a >> 4], kInt4Values[*b >> 4], kInt4Values[*c >> 4], kInt4Values[*d >> 4]};
        }
    }
    static Quads shifted(Quads weights, Odd odd) {  // plus kInt4Shift where scales are odd
        for (I& column : weights.columns) column += odd * kInt4Shift;
        return weights;
    }
    static const int8_t* all_quads(const int8_t* at) { return at; }
    static I add_quads(I total, const Quads& weights, const int8_t* token) {
        for (size_t j = 0; j < 4; ++j) total += weights.columns[j] * int32_t(token[j]);
        return total;
    }
    static I plus_256_times(I low, I high) { return low + high * 256; }
    static F widen_scales(const int8_t* at) {
        return each([=](size_t n) { return float(at[n]); });
    }
    static Odd odd_scales(const int8_t* at) {
        I odd{};
        for (size_t n = 0; n < width; ++n) odd[n] = at[n] & 1;
        return odd;
    }
    static I start(const int32_t* at, Odd odd) { return odd * at[1]; }  // 0 where the scale is even
    typedef uint8_t B __attribute__((vector_size(16)));
    using P = I;  // four sums of four products
    static constexpr size_t bytes = 16;
    static B load_bytes(const void* at) { return get<B>(at); }
    static B all_bytes(int8_t value) { return B{} + uint8_t(value); }
    static P pairs(B codes, B weights) {
        typedef int8_t Signed __attribute__((vector_size(16)));
        const auto products =
            __builtin_convertvector(codes, Ints<16>) * __builtin_convertvector(Signed(weights), Ints<16>);
        I quarters[4];
        std::memcpy(quarters, &products, sizeof(quarters));
        return (quarters[0] + quarters[1]) + (quarters[2] + quarters[3]);
    }
    static P add_pairs(P a, P b) { return a + b; }
    static I total(P sums) { return sums; }
    static I plus(I a, I b) { return a + b; }
    static bool fit(B, B) { return true; }
    static void encode_bytes(const float* x, F inverse, int zero, uint8_t* codes) {
        for (size_t n = 0; n < bytes; ++n) codes[n] = uint8_t(std::lrintf(x[n] * inverse[0]) + zero);
    }
};

using F = Vec::F;

}  // namespace

}  // namespace baize
