// Recovery's kernels over buffers and files.
#include "csrc/bindings.h"

#include <cerrno>
#include <optional>
#include <tuple>
#include <utility>

namespace py = pybind11;

namespace baize {

namespace {

// Memory, and the name of its element type.
using Typed = std::pair<py::buffer, std::string>;
// Descriptor, offset, element type, what errors call it.
using TypedRange = std::tuple<int, int64_t, std::string, py::str>;

// The bytes of a C-contiguous buffer, held for the duration of a call.
class Bytes {
   public:
    Bytes(const py::buffer& buffer, const char* argument, bool writable)
        : info_(request(buffer, argument, writable)) {
        if (info_.size == 0) return;
        py::ssize_t expected = info_.itemsize;
        for (auto axis = info_.ndim - 1; axis >= 0; --axis) {
            if (info_.shape[axis] > 1 && info_.strides[axis] != expected)
                throw py::value_error(std::string(argument) + " has stride " +
                                      std::to_string(info_.strides[axis]) + " in dimension " +
                                      std::to_string(axis) + ", wanted " + std::to_string(expected) +
                                      " (C-contiguous)");
            expected *= info_.shape[axis];
        }
    }
    uint8_t* data() const { return static_cast<uint8_t*>(info_.ptr); }
    size_t size() const { return size_t(info_.size) * size_t(info_.itemsize); }

   private:
    static py::buffer_info request(const py::buffer& buffer, const char* argument, bool writable) {
        py::buffer_info info = buffer.request();
        if (writable && info.readonly)
            throw py::value_error(std::string(argument) + " is read-only, wanted writable memory");
        return info;
    }

    py::buffer_info info_;
};

void check_size(const Bytes& bytes, size_t wanted, const char* argument) {
    if (bytes.size() != wanted)
        throw py::value_error(std::string(argument) + " has " + std::to_string(bytes.size()) +
                              " bytes, wanted " + std::to_string(wanted));
}

size_t elements(const Bytes& bytes, Dtype dtype, const char* argument) {
    if (bytes.size() % itemsize(dtype))
        throw py::value_error(std::string(argument) + " has " + std::to_string(bytes.size()) +
                              " bytes, wanted a multiple of " + std::to_string(itemsize(dtype)));
    return bytes.size() / itemsize(dtype);
}

void check_apart(const Bytes& written, const char* written_argument, const Bytes& read,
                 const char* argument) {
    const auto w = reinterpret_cast<uintptr_t>(written.data()), r = reinterpret_cast<uintptr_t>(read.data());
    if (w < r + read.size() && r < w + written.size())
        throw py::value_error(std::string(written_argument) + " overlaps " + argument +
                              ", wanted memory of its own");
}

py::tuple py_diff_add(const Typed& base, const Typed& diff, const Typed& out,
                      const std::string& implementation, int threads, bool subtract) {
    const Dtype b = dtype_named(base.second, "base's dtype"), d = dtype_named(diff.second, "diff's dtype");
    const Dtype o = dtype_named(out.second, "out's dtype");
    const Bytes from(base.first, "base", false), with(diff.first, "diff", false), to(out.first, "out", true);
    const size_t count = elements(to, o, "out");
    check_size(from, count * itemsize(b), "base");
    check_size(with, count * itemsize(d), "diff");
    check_apart(to, "out", from, "base");
    check_apart(to, "out", with, "diff");
    check_threads(threads);
    const Implementation& row = runnable(implementation);
    const Addition what{{from.data(), b}, {with.data(), d}, {to.data(), o}, count, subtract};
    std::vector<double> sums(what.chunks());
    Counts counts;
    {
        py::gil_scoped_release release;
        counts = diff_add(row, what, threads, sums.data());
    }
    return py::make_tuple(sums, counts.overflowed, counts.nonfinite);
}

FileOperand file_operand(const TypedRange& range, const char* dtype_argument) {
    return {std::get<0>(range), std::get<1>(range), dtype_named(std::get<2>(range), dtype_argument)};
}

py::object py_diff_add_files(const TypedRange& base, const TypedRange& diff, const Typed& out,
                             const std::string& implementation, bool subtract) {
    const Dtype o = dtype_named(out.second, "out's dtype");
    const Bytes to(out.first, "out", true);
    const FileAddition what{file_operand(base, "base's dtype"),
                            file_operand(diff, "diff's dtype"),
                            {to.data(), o},
                            elements(to, o, "out"),
                            subtract};
    const Implementation& row = runnable(implementation);
    std::vector<double> sums((what.count + kChunk - 1) / kChunk);
    Counts counts;
    std::optional<Unread> unread;
    {
        py::gil_scoped_release release;
        unread = diff_add_files(row, what, sums.data(), counts);
    }
    if (unread && unread->error) {
        errno = unread->error;
        const py::str& name = std::get<3>(unread->operand == &what.base ? base : diff);
        PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, name.ptr());
        throw py::error_already_set();
    }
    if (unread) return py::none();
    return py::make_tuple(sums, counts.overflowed, counts.nonfinite);
}

void py_add_rows(const py::buffer& sums, const py::buffer& rows, const std::string& dtype) {
    const Dtype kind = dtype_named(dtype, "dtype");
    const Bytes to(sums, "acc", true), from(rows, "rows", false);
    if (to.size() == 0 || to.size() % sizeof(double) ||
        reinterpret_cast<uintptr_t>(to.data()) % sizeof(double))
        throw py::value_error("acc has " + std::to_string(to.size()) +
                              " bytes, wanted aligned float64 values");
    check_apart(to, "acc", from, "rows");
    const size_t columns = to.size() / sizeof(double), row = columns * itemsize(kind);
    if (from.size() % row)
        throw py::value_error("rows has " + std::to_string(from.size()) + " bytes, wanted whole rows of " +
                              std::to_string(row));
    py::gil_scoped_release release;
    add_rows(reinterpret_cast<double*>(to.data()), columns, {from.data(), kind}, from.size() / row);
}

void py_widen(const py::buffer& values, const std::string& dtype, const py::buffer& out,
              const std::optional<std::string>& implementation) {
    const Dtype kind = dtype_named(dtype, "dtype");
    const Bytes from(values, "src", false), to(out, "out", true);
    const size_t count = elements(from, kind, "src");
    check_size(to, count * sizeof(float), "out");
    check_apart(to, "out", from, "src");
    const Implementation& row = implementation ? runnable(*implementation) : best_implementation();
    py::gil_scoped_release release;
    row.elements.widen({from.data(), kind}, count, to.data());
}

}  // namespace

void bind_diff_add(py::module_& module) {
    using A = py::arg;
    module.attr("CHUNK") = kChunk;
    module.attr("LANES") = kLanes;
    module.def("diff_add", &py_diff_add, A("base"), A("diff"), A("out"), py::kw_only(), A("implementation"),
               A("threads") = 1, A("subtract") = false);
    module.def("diff_add_files", &py_diff_add_files, A("base"), A("diff"), A("out"), py::kw_only(),
               A("implementation"), A("subtract") = false);
    module.def("add_rows", &py_add_rows, A("acc"), A("rows"), A("dtype"));
    module.def("widen", &py_widen, A("src"), A("dtype"), A("out"), py::kw_only(),
               A("implementation") = py::none());
}

}  // namespace baize
