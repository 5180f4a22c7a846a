// Plain C++, four floats at a time as any processor's compiler can have them.
#include <cmath>

#include "decoder_variants.h"

#define BAIZE_TARGET

namespace {

constexpr size_t ROWS = 4, TOKENS = 4, SINGLE_ROWS = 4;

struct Vec {
    static constexpr size_t width = 4;
    struct F {
        float lanes[width];
    };
    struct Codes {
        int16_t values[baize::kGroup];
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

    static Codes unpack8(const uint8_t* at) {
        Codes codes;
        for (size_t n = 0; n < baize::kGroup; ++n) codes.values[n] = int8_t(at[n]);
        return codes;
    }
    static Codes unpack4(const uint8_t* at) {
        Codes codes;
        for (size_t n = 0; n < baize::kGroup / 2; ++n) {
            codes.values[n] = int16_t((at[n] & 15) - 8);
            codes.values[baize::kGroup / 2 + n] = int16_t((at[n] >> 4) - 8);
        }
        return codes;
    }
    static F dot(const Codes& codes, const int16_t* x) {
        int32_t totals[width] = {};
        for (size_t n = 0; n < baize::kGroup; ++n) totals[n % width] += int32_t(codes.values[n]) * x[n];
        return each([&](size_t n) { return float(totals[n]); });
    }
};

}  // namespace

#include "decoder_body.inc"

namespace baize {

Kernels scalar_kernels() {
    const auto why_not = []() -> const char* { return nullptr; };
    return {"scalar", why_not, panel_rows, product, quantise, rms_norm, silu_mul, attend, widen_row};
}

}  // namespace baize
