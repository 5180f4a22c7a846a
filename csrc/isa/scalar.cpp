// The implementation for every processor, with which the others are compared.
#include "csrc/isa/implementations.h"

#define BAIZE_TARGET
#include "csrc/isa/scalar.h"
// the vector type first, because the algorithms use it
#include "csrc/generic/byte_panels.h"
#include "csrc/isa/own_kernels.h"

namespace baize {

namespace {

const char* why_not() { return nullptr; }

}  // namespace

Implementation scalar_implementation() { return own_kernels("scalar", why_not, kBytePanels); }

}  // namespace baize
