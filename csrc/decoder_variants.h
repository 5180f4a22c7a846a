// What each instruction set's file exports; a null product where the build's architecture lacks it.
#pragma once

#include "decoder.h"

namespace baize {

Kernels scalar_kernels();
Kernels avx2_kernels();
Kernels avx512_kernels();
Kernels amx_kernels();

}  // namespace baize
