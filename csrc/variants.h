// The exports of each instruction set's file; functions are nullptr if the build's architecture lacks it.
#pragma once

#include "diff_add.h"

namespace baize {

Variant scalar_variant();
Variant avx2_variant();
Variant avx512_variant();

}  // namespace baize
