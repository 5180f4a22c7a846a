// The module, and its table of implementations. bindings.cpp, bindings_diff_add.cpp and bindings_decoder.cpp
// alone include Python: they convert and check arguments, release the GIL, and call.
#include "csrc/bindings.h"

#include <optional>

namespace py = pybind11;

namespace baize {

Dtype dtype_named(const std::string& name, const char* argument) {
    if (name == "float32") return Dtype::float32;
    if (name == "float16") return Dtype::float16;
    if (name == "bfloat16") return Dtype::bfloat16;
    throw py::value_error(std::string(argument) + " is '" + name + "', wanted float32, float16 or bfloat16");
}

void check_threads(int threads) {
    if (threads < 1 || threads > kMaxThreads)
        throw py::value_error("threads is " + std::to_string(threads) + ", wanted 1 to " +
                              std::to_string(kMaxThreads));
}

const Implementation& runnable(const std::string& name) {
    std::string known;
    for (const Implementation& row : implementations()) {
        if (name == row.name) {
            if (const char* reason = row.why_not())
                throw std::runtime_error("implementation '" + name + "' cannot run: " + reason);
            return row;
        }
        known += (known.empty() ? "" : ", ") + std::string(row.name);
    }
    throw py::value_error("implementation is '" + name + "', wanted one of " + known);
}

}  // namespace baize

using namespace baize;

PYBIND11_MODULE(_C, module) {
    module.doc() = "C++ host kernels over plain buffers; see _C.pyi for shapes, types and errors.";
    py::class_<Implementation>(module, "Implementation")
        .def_property_readonly("name", [](const Implementation& row) { return row.name; })
        .def("why_not", [](const Implementation& row) {
            const char* reason = row.why_not();
            return reason ? std::optional<std::string>(reason) : std::nullopt;
        });
    module.def("implementations", &implementations, py::return_value_policy::reference);
    bind_diff_add(module);
    bind_decoder(module);
}
