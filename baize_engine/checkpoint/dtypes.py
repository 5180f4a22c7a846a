"""Element types of tensors: their names in this project, sizes in bytes, and names in files."""

from __future__ import annotations

FLOATS = ("float32", "float16", "bfloat16")  # the types that recovery and the decoder compute with

# name: (bytes, name in safetensors, storage class of torch)
_TYPES = {
    "float64": (8, "F64", "DoubleStorage"), "float32": (4, "F32", "FloatStorage"), "float16": (2, "F16", "HalfStorage"),
    "bfloat16": (2, "BF16", "BFloat16Storage"), "int64": (8, "I64", "LongStorage"), "int32": (4, "I32", "IntStorage"),
    "int16": (2, "I16", "ShortStorage"), "int8": (1, "I8", "CharStorage"), "uint8": (1, "U8", "ByteStorage"),
    "bool": (1, "BOOL", "BoolStorage"),
}  # fmt: skip
ITEMSIZE = {name: size for name, (size, _, _) in _TYPES.items()}
TO_SAFETENSORS = {name: code for name, (_, code, _) in _TYPES.items()}
SAFETENSORS = {code: name for name, code in TO_SAFETENSORS.items()}
TORCH_STORAGES = {storage: name for name, (_, _, storage) in _TYPES.items()}
