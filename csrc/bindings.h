// What the files that bind the extension share.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "csrc/implementation.h"

namespace baize {

// Libgomp ends the process if it cannot start a thread, so absurd numbers are refused.
constexpr int kMaxThreads = 1024;

// Throw ValueError, naming the argument.
Dtype dtype_named(const std::string& name, const char* argument);
void check_threads(int threads);
// ValueError if the build has no implementation of this name, RuntimeError with the reason if this processor
// cannot run it.
const Implementation& runnable(const std::string& name);

void bind_diff_add(pybind11::module_& module);
void bind_decoder(pybind11::module_& module);

}  // namespace baize
