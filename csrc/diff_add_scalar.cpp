// The variant for every processor, with which the others are compared.
#include "variants.h"

#define BAIZE_TARGET

namespace {

struct Vec {
    static constexpr size_t width = 1;
    template <baize::Dtype D>
    static float load(const uint8_t* at) { return baize::load_one<D>(at); }
    template <baize::Dtype D>
    static void store(uint8_t* at, float value) { baize::store_one<D>(at, value); }
    static float add(float left, float right) { return left + right; }
    static float subtract(float left, float right) { return left - right; }
    static float canonical(float value) { return baize::canonical(value); }
    static void accumulate(double* lane, float value) { *lane += value; }
    static bool any_at_least(float value, uint32_t limit) { return (baize::bits_of(value) & 0x7fffffffu) >= limit; }
    static void bits(uint32_t* out, float value) { *out = baize::bits_of(value); }
};

}  // namespace

#include "diff_add_body.inc"

namespace baize {

Variant scalar_variant() {
    return {"scalar", []() -> const char* { return nullptr; }, chunk, widen};
}

}  // namespace baize
