// Scalar conversions between float32 and the 16-bit types: the definition that every vector type must
// match. Integer arithmetic only, so the caller's rounding mode and denormal flushing do not matter.
#pragma once

#include <cstdint>
#include <cstring>

namespace baize {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// Exact: every float16 is a float32. A signalling NaN becomes quiet with its payload kept, as in F16C.
inline float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 0x1fu;
    uint32_t mantissa = half & 0x3ffu;
    if (exponent == 31) return float_of(sign | 0x7f800000u | (mantissa ? 0x400000u : 0u) | mantissa << 13);
    if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
    if (mantissa == 0) return float_of(sign);
    uint32_t shift = 0;  // subnormal: move its leading one to bit 10
    while (!(mantissa & 0x400u)) {
        mantissa <<= 1;
        ++shift;
    }
    return float_of(sign | (113 - shift) << 23 | (mantissa & 0x3ffu) << 13);
}

// Nearest, ties to even; NaN becomes 0x7e00.
inline uint16_t float_to_half(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t sign = bits >> 16 & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7e00u;
    if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // 65520 and above
    if (magnitude >= 0x38800000u) {  // 2^-14 and above: normal
        const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
        return uint16_t(sign | ((rounded >> 13) - (112u << 10)));
    }
    if (magnitude < 0x33000000u) return uint16_t(sign);  // below 2^-25, half the smallest subnormal
    const uint32_t shift = 126 - (magnitude >> 23);  // 14..24 bits below the result's last
    const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t kept = mantissa >> shift, rest = mantissa & ((1u << shift) - 1), tie = 1u << (shift - 1);
    return uint16_t(sign | (kept + (rest > tie || (rest == tie && (kept & 1u)))));
}

inline float bfloat_to_float(uint16_t half) { return float_of(uint32_t(half) << 16); }

// Nearest, ties to even; NaN becomes 0x7fc0.
inline uint16_t float_to_bfloat(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline float canonical(float value) { return value != value ? float_of(0x7fc00000u) : value; }

}  // namespace baize
