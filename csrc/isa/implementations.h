// What each file of isa/ exports, and which of them this build has.
#pragma once

#include "csrc/implementation.h"

#if defined(__x86_64__)
#define BAIZE_X86 1
#else
#define BAIZE_X86 0
#endif

// AMX asks Linux for permission, and older compilers do not know its instructions.
#if BAIZE_X86 && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define BAIZE_AMX 1
#else
#define BAIZE_AMX 0
#endif

namespace baize {

Implementation scalar_implementation();
#if BAIZE_X86
Implementation avx2_implementation();
Implementation avx512_implementation();
#endif
#if BAIZE_AMX
Implementation amx_implementation();  // avx512's, with byte products by AMX's tile registers
#endif

}  // namespace baize
