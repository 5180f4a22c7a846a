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

// Older compilers do not know AVX-VNNI.
#if BAIZE_X86 && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define BAIZE_HAS_AVX_VNNI 1
#else
#define BAIZE_HAS_AVX_VNNI 0
#endif

namespace baize {

Implementation scalar_implementation();
#if BAIZE_X86
Implementation avx2_implementation();
const char* why_not_avx2();  // why this processor cannot run it; nullptr if it can
Implementation avx512_implementation();
#endif
#if BAIZE_HAS_AVX_VNNI
Implementation avx_vnni_implementation();
#endif
#if BAIZE_AMX
Implementation amx_implementation();  // avx512's, with byte and int4 products by AMX's tile registers
#endif

}  // namespace baize
