// The only file that includes Python: converts and checks arguments, releases the GIL, calls.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <optional>
#include <string>

#include "decoder.h"
#include "diff_add.h"
#include "quantize.h"

namespace py = pybind11;
using namespace baize;

namespace {

Dtype dtype_of(const std::string& name, const char* argument) {
    if (name == "float32") return Dtype::float32;
    if (name == "float16") return Dtype::float16;
    if (name == "bfloat16") return Dtype::bfloat16;
    throw py::value_error(std::string(argument) + " is '" + name + "', wanted float32, float16 or bfloat16");
}

// The bytes of a C-contiguous buffer, held for the duration of a call.
class Bytes {
   public:
    Bytes(const py::buffer& buffer, const char* argument, bool writable) : info_(request(buffer, argument, writable)) {
        if (info_.size == 0) return;
        py::ssize_t expected = info_.itemsize;
        for (auto axis = info_.ndim - 1; axis >= 0; --axis) {
            if (info_.shape[axis] > 1 && info_.strides[axis] != expected)
                throw py::value_error(std::string(argument) + " has stride " + std::to_string(info_.strides[axis]) +
                                      " in dimension " + std::to_string(axis) + ", wanted " + std::to_string(expected) +
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
        throw py::value_error(std::string(argument) + " has " + std::to_string(bytes.size()) + " bytes, wanted " +
                              std::to_string(wanted));
}

size_t elements(const Bytes& bytes, Dtype dtype, const char* argument) {
    if (bytes.size() % itemsize(dtype))
        throw py::value_error(std::string(argument) + " has " + std::to_string(bytes.size()) +
                              " bytes, wanted a multiple of " + std::to_string(itemsize(dtype)));
    return bytes.size() / itemsize(dtype);
}

void check_apart(const Bytes& written, const char* written_argument, const Bytes& read, const char* argument) {
    const auto w = reinterpret_cast<uintptr_t>(written.data()), r = reinterpret_cast<uintptr_t>(read.data());
    if (w < r + read.size() && r < w + written.size())
        throw py::value_error(std::string(written_argument) + " overlaps " + argument + ", wanted memory of its own");
}

const Variant& find(const std::string& name) {
    std::string known;
    for (const Variant& variant : variants()) {
        if (name == variant.name) return variant;
        known += (known.empty() ? "" : ", ") + std::string(variant.name);
    }
    throw py::value_error("variant is '" + name + "', wanted one of " + known);
}

const Variant& find_runnable(const std::string& name) {
    const Variant& row = find(name);
    if (const char* reason = row.why_not()) throw std::runtime_error("variant '" + name + "' cannot run: " + reason);
    return row;
}

std::vector<std::string> variant_names() {
    std::vector<std::string> names;
    for (const Variant& variant : variants()) names.emplace_back(variant.name);
    return names;
}

py::object why_not(const std::string& name) {
    const char* reason = find(name).why_not();
    return reason ? py::object(py::str(reason)) : py::object(py::none());
}

py::tuple py_diff_add(const py::buffer& base, const std::string& base_dtype, const py::buffer& diff,
                      const std::string& diff_dtype, const py::buffer& out, const std::string& out_dtype,
                      const std::string& variant, int threads, bool subtract) {
    const Dtype b = dtype_of(base_dtype, "base_dtype"), d = dtype_of(diff_dtype, "diff_dtype");
    const Dtype o = dtype_of(out_dtype, "out_dtype");
    const Bytes from(base, "base", false), with(diff, "diff", false), to(out, "out", true);
    const size_t count = elements(to, o, "out");
    check_size(from, count * itemsize(b), "base");
    check_size(with, count * itemsize(d), "diff");
    check_apart(to, "out", from, "base");
    check_apart(to, "out", with, "diff");
    if (threads < 1 || threads > kMaxThreads)
        throw py::value_error("threads is " + std::to_string(threads) + ", wanted 1 to " + std::to_string(kMaxThreads));
    const Variant& row = find_runnable(variant);
    std::vector<double> sums((count + kChunk - 1) / kChunk);
    Counts counts;
    {
        py::gil_scoped_release release;
        counts = diff_add(row, {from.data(), b}, {with.data(), d}, {to.data(), o}, count, subtract, threads,
                          sums.data());
    }
    return py::make_tuple(sums, counts.overflowed, counts.nonfinite);
}

py::object py_diff_add_files(int base, int64_t base_offset, const std::string& base_dtype, const py::str& base_name,
                            int diff, int64_t diff_offset, const std::string& diff_dtype, const py::str& diff_name,
                            const py::buffer& out, const std::string& out_dtype, const std::string& variant,
                            bool subtract) {
    const Dtype b = dtype_of(base_dtype, "base_dtype"), d = dtype_of(diff_dtype, "diff_dtype");
    const Dtype o = dtype_of(out_dtype, "out_dtype");
    const FileOperand from{base, base_offset, b}, with{diff, diff_offset, d};
    const Bytes to(out, "out", true);
    const size_t count = elements(to, o, "out");
    const Variant& row = find_runnable(variant);
    std::vector<double> sums((count + kChunk - 1) / kChunk);
    Counts counts;
    std::optional<Unread> unread;
    {
        py::gil_scoped_release release;
        unread = diff_add_files(row, from, with, {to.data(), o}, count, subtract, sums.data(), counts);
    }
    if (unread && unread->error) {
        errno = unread->error;
        const py::str& name = unread->operand == &from ? base_name : diff_name;
        PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, name.ptr());
        throw py::error_already_set();
    }
    if (unread) return py::none();
    return py::make_tuple(sums, counts.overflowed, counts.nonfinite);
}

void py_add_rows(const py::buffer& sums, const py::buffer& rows, const std::string& dtype) {
    const Dtype kind = dtype_of(dtype, "dtype");
    const Bytes to(sums, "acc", true), from(rows, "rows", false);
    if (to.size() == 0 || to.size() % sizeof(double) || reinterpret_cast<uintptr_t>(to.data()) % sizeof(double))
        throw py::value_error("acc has " + std::to_string(to.size()) + " bytes, wanted aligned float64 values");
    check_apart(to, "acc", from, "rows");
    const size_t columns = to.size() / sizeof(double), row = columns * itemsize(kind);
    if (from.size() % row)
        throw py::value_error("rows has " + std::to_string(from.size()) + " bytes, wanted whole rows of " +
                              std::to_string(row));
    py::gil_scoped_release release;
    add_rows(reinterpret_cast<double*>(to.data()), columns, {from.data(), kind}, from.size() / row);
}

void py_widen(const py::buffer& values, const std::string& dtype, const py::buffer& out,
              const std::optional<std::string>& variant) {
    const Dtype kind = dtype_of(dtype, "dtype");
    const Bytes from(values, "src", false), to(out, "out", true);
    const size_t count = elements(from, kind, "src");
    check_size(to, count * sizeof(float), "out");
    check_apart(to, "out", from, "src");
    const Variant& row = variant ? find_runnable(*variant) : best_variant();
    py::gil_scoped_release release;
    row.widen({from.data(), kind}, to.data(), count);
}

// Addresses come from tensors whose type, shape and layout baize_engine/backend/cpp_ops.py has checked; it keeps them alive.
template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

Kind kind_of(const std::string& name) {
    if (name == "float32") return Kind::float32;
    if (name == "float16") return Kind::float16;
    if (name == "bfloat16") return Kind::bfloat16;
    if (name == "int8") return Kind::int8;
    if (name == "int4") return Kind::int4;
    throw py::value_error("kind is '" + name + "', wanted float32, float16, bfloat16, int8 or int4");
}

Kind float_kind(const std::string& name) {
    const Kind kind = kind_of(name);
    if (kind == Kind::int8 || kind == Kind::int4) throw py::value_error("kind is '" + name + "', wanted a float type");
    return kind;
}

Matrix matrix(const std::string& kind, uintptr_t values, uintptr_t scales, size_t rows, size_t columns) {
    if (rows == 0 || columns == 0)
        throw py::value_error("a matrix has " + std::to_string(rows) + " rows of " + std::to_string(columns) +
                              " columns, wanted at least one of each");
    return {kind_of(kind), at<const uint8_t>(values), at<const uint8_t>(scales), rows, columns};
}

const Kernels& kernels_of(const std::string& variant) {
    for (const Kernels& row : kernel_variants())
        if (variant == row.name) {
            if (const char* reason = row.why_not())
                throw std::runtime_error("variant '" + variant + "' cannot run: " + reason);
            return row;
        }
    throw py::value_error("variant is '" + variant + "', which this build does not have");
}

py::object decoder_why_not(const std::string& variant) {
    for (const Kernels& row : kernel_variants())
        if (variant == row.name) {
            const char* reason = row.why_not();
            return reason ? py::object(py::str(reason)) : py::object(py::none());
        }
    throw py::value_error("variant is '" + variant + "', which this build does not have");
}

void py_quantize(const std::string& variant, uintptr_t weight, const std::string& dtype, const Matrix& out) {
    const Kernels& kernels = kernels_of(variant);
    const Kind from = float_kind(dtype);
    if (!out.quantised()) throw py::value_error("out is a matrix of floats, wanted int8 or int4");
    bool finite;
    {
        py::gil_scoped_release release;
        finite = quantize(kernels, from, at<const uint8_t>(weight), out, const_cast<uint8_t*>(out.values),
                          const_cast<uint8_t*>(out.scales));  // the memory of tensors, which is writable
    }
    if (!finite) throw py::value_error("weight holds values that are not finite, which have no code");
}

// The ops of a plan, made by keyword; kernels/reference.py documents their operands.
void bind_ops(py::module_& module) {
    using A = py::arg;
    const py::kw_only by_name;
    py::class_<Embed>(module, "Embed")
        .def(py::init([](uintptr_t ids, size_t tokens, const std::string& kind, uintptr_t weight, size_t rows, size_t hidden,
                         uintptr_t out) {
                 return Embed{at<const int64_t>(ids), tokens, float_kind(kind), at<const uint8_t>(weight), rows, hidden,
                              at<float>(out)};
             }),
             by_name, A("ids"), A("tokens"), A("kind"), A("weight"), A("rows"), A("hidden"), A("out"));
    py::class_<QkvRopeStore>(module, "QkvRopeStore")
        .def(py::init([](uintptr_t x, size_t tokens, uintptr_t norm, float eps, const std::vector<Matrix>& weights,
                         uintptr_t cos, uintptr_t sin, size_t turns, uintptr_t positions, const std::string& cache,
                         uintptr_t keys, uintptr_t values, size_t places, uintptr_t slots, size_t heads, size_t kv_heads,
                         size_t dim, uintptr_t q, bool int8_activations) {
                 return QkvRopeStore{at<const float>(x), tokens, at<const float>(norm), eps, weights, at<const float>(cos),
                                     at<const float>(sin), turns, at<const int64_t>(positions), float_kind(cache),
                                     at<uint8_t>(keys), at<uint8_t>(values), places, at<const int64_t>(slots), heads,
                                     kv_heads, dim, at<float>(q), int8_activations};
             }),
             by_name, A("x"), A("tokens"), A("norm"), A("eps"), A("weights"), A("cos"), A("sin"), A("turns"),
             A("positions"), A("cache"), A("keys"), A("values"), A("places"), A("slots"), A("heads"), A("kv_heads"),
             A("dim"), A("q"), A("int8_activations"));
    py::class_<Attention>(module, "Attention")
        .def(py::init([](uintptr_t q, const std::string& cache, uintptr_t keys, uintptr_t values, uintptr_t block_tables,
                         uintptr_t query_starts, uintptr_t context_lens, size_t tokens, size_t sequences,
                         size_t table_stride, size_t heads, size_t kv_heads, size_t dim, size_t block, size_t blocks,
                         float scale, uintptr_t out) {
                 return Attention{at<const float>(q), at<const uint8_t>(keys), at<const uint8_t>(values), float_kind(cache),
                                  at<const int32_t>(block_tables), at<const int32_t>(query_starts),
                                  at<const int32_t>(context_lens), tokens, sequences, table_stride, heads, kv_heads, dim,
                                  block, blocks, scale, at<float>(out), 0};
             }),
             by_name, A("q"), A("cache"), A("keys"), A("values"), A("block_tables"), A("query_starts"), A("context_lens"),
             A("tokens"), A("sequences"), A("table_stride"), A("heads"), A("kv_heads"), A("dim"), A("block"), A("blocks"),
             A("scale"), A("out"));
    py::class_<LinearAdd>(module, "LinearAdd")
        .def(py::init([](uintptr_t x, size_t tokens, const Matrix& weight, uintptr_t out, bool int8_activations) {
                 return LinearAdd{at<const float>(x), tokens, weight, at<float>(out), int8_activations};
             }),
             by_name, A("x"), A("tokens"), A("weight"), A("out"), A("int8_activations"));
    py::class_<GateUp>(module, "GateUp")
        .def(py::init([](uintptr_t x, size_t tokens, uintptr_t norm, float eps, const std::vector<Matrix>& weights,
                         uintptr_t out, bool int8_activations) {
                 return GateUp{at<const float>(x), tokens, at<const float>(norm), eps, weights, at<float>(out),
                               int8_activations};
             }),
             by_name, A("x"), A("tokens"), A("norm"), A("eps"), A("weights"), A("out"), A("int8_activations"));
    py::class_<Head>(module, "Head")
        .def(py::init([](uintptr_t x, size_t tokens, uintptr_t norm, float eps, const Matrix& weight, uintptr_t out,
                         uintptr_t best) {
                 return Head{at<const float>(x), tokens, at<const float>(norm), eps, weight, at<float>(out),
                             at<int32_t>(best)};
             }),
             by_name, A("x"), A("tokens"), A("norm"), A("eps"), A("weight"), A("out"), A("best"));
    py::class_<Sample>(module, "Sample")
        .def(py::init([](uintptr_t logits, uintptr_t best, size_t rows, size_t vocabulary, uintptr_t temperature,
                         uintptr_t top_k, uintptr_t top_p, uintptr_t min_p, uintptr_t seeds, uintptr_t sample_index,
                         uintptr_t positions, bool narrow, uintptr_t out) {
                 return Sample{at<const float>(logits), at<const int32_t>(best), rows, vocabulary,
                               at<const float>(temperature), at<const int64_t>(top_k), at<const float>(top_p),
                               at<const float>(min_p), at<const int64_t>(seeds), at<const int64_t>(sample_index),
                               narrow ? nullptr : at<const int64_t>(positions),
                               narrow ? at<const int32_t>(positions) : nullptr, at<int64_t>(out)};
             }),
             by_name, A("logits"), A("best"), A("rows"), A("vocabulary"), A("temperature"), A("top_k"), A("top_p"),
             A("min_p"), A("seeds"), A("sample_index"), A("positions"), A("narrow"), A("out"));
    py::class_<Advance>(module, "Advance")
        .def(py::init([](uintptr_t tokens, size_t rows, uintptr_t ids, uintptr_t positions, uintptr_t slots, uintptr_t lens,
                         uintptr_t left, uintptr_t stops, size_t stops_of_row, uintptr_t block_tables, size_t table_stride,
                         int64_t block) {
                 return Advance{at<const int64_t>(tokens), rows, at<int64_t>(ids), at<int64_t>(positions),
                                at<int64_t>(slots), at<int32_t>(lens), at<int32_t>(left), at<const int64_t>(stops),
                                stops_of_row, at<const int32_t>(block_tables), table_stride, block};
             }),
             by_name, A("tokens"), A("rows"), A("ids"), A("positions"), A("slots"), A("lens"), A("left"), A("stops"),
             A("stops_of_row"), A("block_tables"), A("table_stride"), A("block"));
}

void bind_decoder(py::module_& module) {
    module.def("decoder_variants", [] {
        std::vector<std::string> names;
        for (const Kernels& row : kernel_variants()) names.emplace_back(row.name);
        return names;
    });
    module.def("decoder_why_not", &decoder_why_not, py::arg("variant"));
    py::class_<Matrix>(module, "Matrix")
        .def(py::init(&matrix), py::arg("kind"), py::arg("values"), py::arg("scales"), py::arg("rows"), py::arg("columns"));
    module.def("quantize", &py_quantize, py::arg("variant"), py::arg("weight"), py::arg("dtype"), py::arg("out"));
    bind_ops(module);
    py::class_<Plan>(module, "Plan")
        .def(py::init([](const std::string& variant) { return new Plan(kernels_of(variant)); }), py::arg("variant"))
        .def("append", py::overload_cast<const Embed&>(&Plan::append), py::arg("op"))
        .def("append", py::overload_cast<const QkvRopeStore&>(&Plan::append), py::arg("op"))
        .def("append", py::overload_cast<const Attention&>(&Plan::append), py::arg("op"))
        .def("append", py::overload_cast<const LinearAdd&>(&Plan::append), py::arg("op"))
        .def("append", py::overload_cast<const GateUp&>(&Plan::append), py::arg("op"))
        .def("append", py::overload_cast<const Head&>(&Plan::append), py::arg("op"))
        .def("append", py::overload_cast<const Sample&>(&Plan::append), py::arg("op"))
        .def("append", py::overload_cast<const Advance&>(&Plan::append), py::arg("op"))
        .def("run", [](Plan& plan, int threads) {
            if (threads < 1 || threads > kMaxThreads)
                throw py::value_error("threads is " + std::to_string(threads) + ", wanted 1 to " +
                                      std::to_string(kMaxThreads));
            py::gil_scoped_release release;
            plan.run(threads);
        }, py::arg("threads"));
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "C++ host kernels over plain buffers; see _C.pyi for shapes, types and errors.";
    module.attr("CHUNK") = kChunk;
    module.attr("LANES") = kLanes;
    module.def("diff_add_variants", &variant_names);
    module.def("why_not", &why_not, py::arg("variant"));
    module.def("diff_add", &py_diff_add, py::arg("base"), py::arg("base_dtype"), py::arg("diff"), py::arg("diff_dtype"),
               py::arg("out"), py::arg("out_dtype"), py::kw_only(), py::arg("variant"), py::arg("threads") = 1,
               py::arg("subtract") = false);
    module.def("diff_add_files", &py_diff_add_files, py::arg("base"), py::arg("base_offset"), py::arg("base_dtype"),
               py::arg("base_name"), py::arg("diff"), py::arg("diff_offset"), py::arg("diff_dtype"),
               py::arg("diff_name"), py::arg("out"), py::arg("out_dtype"), py::kw_only(), py::arg("variant"),
               py::arg("subtract") = false);
    module.def("add_rows", &py_add_rows, py::arg("acc"), py::arg("rows"), py::arg("dtype"));
    module.def("widen", &py_widen, py::arg("src"), py::arg("dtype"), py::arg("out"), py::kw_only(),
               py::arg("variant") = py::none());
    bind_decoder(module);
}
