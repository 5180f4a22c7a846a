// The decoder's plans. Addresses come from tensors whose type, shape and layout
// baize_engine/backend/cpp_ops.py has checked; it keeps them alive.
#include "csrc/bindings.h"
#include "csrc/plan.h"

namespace py = pybind11;

namespace baize {

namespace {

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

Kind kind_named(const std::string& name) {
    if (name == "float32") return Kind::float32;
    if (name == "float16") return Kind::float16;
    if (name == "bfloat16") return Kind::bfloat16;
    if (name == "int8") return Kind::int8;
    if (name == "int4") return Kind::int4;
    throw py::value_error("kind is '" + name + "', wanted float32, float16, bfloat16, int8 or int4");
}

Matrix matrix(const std::string& kind, uintptr_t values, uintptr_t scales, size_t rows, size_t columns,
              uintptr_t factors, size_t first) {
    if (rows == 0 || columns == 0)
        throw py::value_error("a matrix has " + std::to_string(rows) + " rows of " + std::to_string(columns) +
                              " columns, wanted at least one of each");
    return {
        .kind = kind_named(kind),
        .values = at<const uint8_t>(values),
        .scales = at<const uint8_t>(scales),
        .rows = rows,
        .columns = columns,
        .factors = at<const float>(factors),
        .first = first,
    };
}

void py_quantize(const std::string& implementation, uintptr_t weight, const std::string& dtype,
                 const Matrix& out) {
    const Implementation& row = runnable(implementation);
    const Operand from{at<const uint8_t>(weight), dtype_named(dtype, "dtype")};
    if (!out.quantised()) throw py::value_error("out is a matrix of floats, wanted int8 or int4");
    bool finite;
    {
        py::gil_scoped_release release;
        finite = quantize(row, from, out);  // the memory of tensors, which is writable
    }
    if (!finite) throw py::value_error("weight holds values that are not finite, which have no code");
}

// The keyword arguments of an op, each taken once.
class Fields {
   public:
    Fields(const char* op, const py::kwargs& given) : op_(op), given_(given) {}

    template <class T>
    T get(const char* name) {
        if (!given_.contains(name))
            throw py::type_error(std::string(op_) + " needs the keyword argument " + name);
        ++taken_;
        return given_[name].cast<T>();
    }
    template <class T>
    T* address(const char* name) {
        return at<T>(get<uintptr_t>(name));
    }
    size_t size(const char* name) { return get<size_t>(name); }
    Dtype dtype(const char* name) { return dtype_named(get<std::string>(name), name); }
    Operand operand(const char* name, const char* dtype_name) {
        return {address<const uint8_t>(name), dtype(dtype_name)};
    }
    void end() const {
        if (taken_ != given_.size())
            throw py::type_error(std::string(op_) + " got " + std::to_string(given_.size()) +
                                 " keyword arguments, wanted " + std::to_string(taken_));
    }

   private:
    const char* op_;
    const py::kwargs& given_;
    size_t taken_ = 0;
};

// The ops of a plan from Fields of their names; kernels/reference.py documents their operands.

Embed embed(Fields& of) {
    return {
        .ids = of.address<const int64_t>("ids"),
        .tokens = of.size("tokens"),
        .weight = of.operand("weight", "kind"),
        .rows = of.size("rows"),
        .hidden = of.size("hidden"),
        .out = of.address<float>("out"),
    };
}

QkvRopeStore qkv_rope_store(Fields& of) {
    return {
        .x = of.address<const float>("x"),
        .tokens = of.size("tokens"),
        .norm = of.address<const float>("norm"),
        .eps = of.get<float>("eps"),
        .matrices = of.get<std::vector<Matrix>>("weights"),
        .cos = of.address<const float>("cos"),
        .sin = of.address<const float>("sin"),
        .turns = of.size("turns"),
        .positions = of.address<const int64_t>("positions"),
        .cache = of.dtype("cache"),
        .keys = of.address<uint8_t>("keys"),
        .values = of.address<uint8_t>("values"),
        .places = of.size("places"),
        .slots = of.address<const int64_t>("slots"),
        .heads = of.size("heads"),
        .kv_heads = of.size("kv_heads"),
        .dim = of.size("dim"),
        .q = of.address<float>("q"),
        .int8_activations = of.get<bool>("int8_activations"),
    };
}

Attention attention(Fields& of) {
    return {
        .q = of.address<const float>("q"),
        .keys = of.address<const uint8_t>("keys"),
        .values = of.address<const uint8_t>("values"),
        .cache = of.dtype("cache"),
        .tables = of.address<const int32_t>("block_tables"),
        .starts = of.address<const int32_t>("query_starts"),
        .lens = of.address<const int32_t>("context_lens"),
        .tokens = of.size("tokens"),
        .sequences = of.size("sequences"),
        .table_stride = of.size("table_stride"),
        .heads = of.size("heads"),
        .kv_heads = of.size("kv_heads"),
        .dim = of.size("dim"),
        .block = of.size("block"),
        .blocks = of.size("blocks"),
        .scale = of.get<float>("scale"),
        .out = of.address<float>("out"),
        .splits = 0,  // the plan's
    };
}

LinearAdd linear_add(Fields& of) {
    return {
        .x = of.address<const float>("x"),
        .tokens = of.size("tokens"),
        .matrix = of.get<Matrix>("weight"),
        .out = of.address<float>("out"),
        .int8_activations = of.get<bool>("int8_activations"),
    };
}

SegmentSums segment_sums(Fields& of) {
    return {
        .x = of.address<const float>("x"),
        .tokens = of.size("tokens"),
        .segments = of.size("segments"),
        .matrix = of.get<Matrix>("weight"),
        .out = of.address<float>("out"),
        .int8_activations = of.get<bool>("int8_activations"),
    };
}

AddSums add_sums(Fields& of) {
    return {
        .sums = of.address<const float>("sums"),
        .ranks = of.size("ranks"),
        .tokens = of.size("tokens"),
        .width = of.size("width"),
        .out = of.address<float>("out"),
    };
}

GateUp gate_up(Fields& of) {
    return {
        .x = of.address<const float>("x"),
        .tokens = of.size("tokens"),
        .norm = of.address<const float>("norm"),
        .eps = of.get<float>("eps"),
        .matrices = of.get<std::vector<Matrix>>("weights"),
        .out = of.address<float>("out"),
        .int8_activations = of.get<bool>("int8_activations"),
    };
}

Head head(Fields& of) {
    return {
        .x = of.address<const float>("x"),
        .tokens = of.size("tokens"),
        .norm = of.address<const float>("norm"),
        .eps = of.get<float>("eps"),
        .matrix = of.get<Matrix>("weight"),
        .out = of.address<float>("out"),
        .best = of.address<int32_t>("best"),
    };
}

Sample sample(Fields& of) {
    const bool narrow = of.get<bool>("narrow");
    const auto positions = of.get<uintptr_t>("positions");
    return {
        .logits = of.address<const float>("logits"),
        .best = of.address<const int32_t>("best"),
        .rows = of.size("rows"),
        .vocabulary = of.size("vocabulary"),
        .temperature = of.address<const float>("temperature"),
        .top_k = of.address<const int64_t>("top_k"),
        .top_p = of.address<const float>("top_p"),
        .min_p = of.address<const float>("min_p"),
        .seeds = of.address<const int64_t>("seeds"),
        .sample_index = of.address<const int64_t>("sample_index"),
        .positions = narrow ? nullptr : at<const int64_t>(positions),
        .narrow = narrow ? at<const int32_t>(positions) : nullptr,
        .out = of.address<int64_t>("out"),
    };
}

Advance advance(Fields& of) {
    return {
        .tokens = of.address<const int64_t>("tokens"),
        .rows = of.size("rows"),
        .ids = of.address<int64_t>("ids"),
        .positions = of.address<int64_t>("positions"),
        .slots = of.address<int64_t>("slots"),
        .lens = of.address<int32_t>("lens"),
        .left = of.address<int32_t>("left"),
        .stops = of.address<const int64_t>("stops"),
        .stops_of_row = of.size("stops_of_row"),
        .tables = of.address<const int32_t>("block_tables"),
        .table_stride = of.size("table_stride"),
        .block = of.get<int64_t>("block"),
    };
}

template <class Op>
void bind_op(py::module_& module, py::class_<Plan>& plan, const char* name, Op (*made)(Fields&)) {
    py::class_<Op>(module, name).def(py::init([=](const py::kwargs& given) {
        Fields fields(name, given);
        Op op = made(fields);
        fields.end();
        return op;
    }));
    plan.def("append", py::overload_cast<const Op&>(&Plan::append), py::arg("op"));
}

}  // namespace

void bind_decoder(py::module_& module) {
    py::class_<Matrix>(module, "Matrix")
        .def(py::init(&matrix), py::arg("kind"), py::arg("values"), py::arg("scales"), py::arg("rows"),
             py::arg("columns"), py::arg("factors") = 0, py::arg("first") = 0);
    module.def("quantize", &py_quantize, py::arg("implementation"), py::arg("weight"), py::arg("dtype"),
               py::arg("out"));
    py::class_<Plan> plan(module, "Plan");
    plan.def(py::init([](const std::string& implementation, int threads) {
                 check_threads(threads);
                 return new Plan(runnable(implementation), size_t(threads));
             }),
             py::arg("implementation"), py::arg("threads"));
    plan.def(
        "run",
        [](Plan& plan, int threads) {
            check_threads(threads);
            py::gil_scoped_release release;
            plan.run(threads);
        },
        py::arg("threads"));
    bind_op(module, plan, "Embed", embed);
    bind_op(module, plan, "QkvRopeStore", qkv_rope_store);
    bind_op(module, plan, "Attention", attention);
    bind_op(module, plan, "LinearAdd", linear_add);
    bind_op(module, plan, "SegmentSums", segment_sums);
    bind_op(module, plan, "AddSums", add_sums);
    bind_op(module, plan, "GateUp", gate_up);
    bind_op(module, plan, "Head", head);
    bind_op(module, plan, "Sample", sample);
    bind_op(module, plan, "Advance", advance);
}

}  // namespace baize
