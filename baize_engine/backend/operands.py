"""Operands of the decoder's C++ ops: tensors and weights by address, checked. Knows no op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baize_engine import _C
from baize_engine.kernels.quantized import BLOCK, PANEL, Int8Weight, Weight

FLOATS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def address(name: str, tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
    """The tensor's address. ValueError unless it is a contiguous CPU tensor of `shape` and `dtype`."""
    if tensor is None:
        raise ValueError(f"{name} is None, wanted {dtype} of {tuple(shape)} on the CPU")
    if tensor.shape != tuple(shape) or tensor.dtype != dtype or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}, wanted {dtype} of "
            f"{tuple(shape)} on the CPU"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}, wanted contiguous memory")
    return tensor.data_ptr()


def matrix(weight: Weight, columns: int) -> _C.Matrix:
    """The weight (N, columns). ValueError, by the operand's name, unless it is a matrix of a kind and layout that C++ reads."""
    rows = weight.shape[0]
    if isinstance(weight, Tensor):
        if weight.dtype not in FLOATS:
            raise ValueError(f"weight is {weight.dtype}, wanted float32, float16 or bfloat16")
        return _C.Matrix(
            FLOATS[weight.dtype], address("weight", weight, (rows, columns), weight.dtype), 0, rows, columns
        )
    if weight.shape[1] != columns:
        raise ValueError(f"weight has {weight.shape[1]} columns, wanted {columns}")
    if isinstance(weight, Int8Weight):
        values = address("values", weight.values, (rows, columns), torch.int8)
        return _C.Matrix("int8", values, address("scales", weight.scales, (rows,)), rows, columns)
    if not weight.in_panels:
        raise ValueError("weight is int4 in rows, wanted panels on the CPU")
    panels, blocks = -(-(weight.first + rows) // PANEL), -(-columns // BLOCK)
    return _C.Matrix(
        "int4",
        address("values", weight.values, (panels, blocks, PANEL * BLOCK // 2), torch.uint8),
        address("scales", weight.scales, (panels, blocks, PANEL), torch.int8),
        rows,
        columns,
        factors=address("factors", weight.factors, (rows,)),
        first=weight.first,
    )
