"""int4 matrices of scheme "baize-1", which `baize quantize` wrote before "baize-2": read, and held as int8.

    w[n, k] = (u[n, k] - 8) * s[n, k // GROUP]   u in 0..15, s float16

A group is GROUP / 2 bytes: byte j holds its column j in the low four bits and column j + GROUP / 2 in the high four.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baize_engine.backend.choose import quantizer
from baize_engine.kernels.quantized import Int8Weight, Stored, empty
from baize_engine.model.config import OLD_INT4

SCHEME, GROUP = str(OLD_INT4["scheme"]), int(OLD_INT4["group_size"])
ROWS = 1 << 22  # weights converted at a time, to bound temporary memory


def layout(rows: int, columns: int) -> tuple[Stored, Stored]:
    """dtype and shape of a matrix's values and scales."""
    groups = -(-columns // GROUP)
    return ("uint8", (rows, groups * GROUP // 2)), ("float16", (rows, groups))


def dequantize(values: Tensor, scales: Tensor, columns: int) -> Tensor:
    """The matrix (N, columns), float32."""
    packed = values.view(*scales.shape, GROUP // 2)
    codes = torch.cat([packed & 15, packed >> 4], dim=2).float() - 8
    return (codes * scales.float()[:, :, None]).flatten(1)[:, :columns]


def to_int8(values: Tensor, scales: Tensor, columns: int) -> Int8Weight:
    """The matrix as int8, on the same device: eight bits keep what four held to within a 254th of a row's greatest value."""
    device = str(values.device)
    out, quantize = empty("int8", values.shape[0], columns, device), quantizer(device)
    step = max(1, ROWS // columns)
    for begin in range(0, values.shape[0], step):
        part = slice(begin, begin + step)
        rows = dequantize(values[part], scales[part], columns).contiguous()
        quantize(rows, "int8", out=out.rows(begin, begin + step))
    assert isinstance(out, Int8Weight)
    return out
