// What this processor can do, where the compiler's own test does not say it.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

namespace baize {

// __builtin_cpu_supports knows F16C only since GCC 11, and not in Clang. Asked once: in a virtual machine the
// instruction takes 10 us, because it leaves the machine.
inline bool has_f16c() {
    static const bool has = [] {
        unsigned a = 0, b = 0, c = 0, d = 0;
        return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    }();
    return has;
}

}  // namespace baize
#endif
