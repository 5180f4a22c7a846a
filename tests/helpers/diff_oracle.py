"""What diff_add must give, worked out in plain torch and numpy, and tensors to give it."""

from __future__ import annotations

import math
import struct

import numpy as np
import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


CANONICAL = {"float32": 0x7FC00000, "float16": 0x7E00, "bfloat16": 0x7FC0}


def as_bytes(tensor: torch.Tensor) -> bytearray:
    return bytearray(tensor.contiguous().view(torch.uint8).numpy().tobytes()) if tensor.numel() else bytearray()


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def oracle(base: torch.Tensor, diff: torch.Tensor, out: str, subtract: bool) -> tuple[bytearray, list[float], int, int]:
    left, right = base.float(), diff.float()
    value = right - left if subtract else left + right
    rounded = value.to(DTYPES[out])
    bits(rounded)[torch.isnan(value)] = CANONICAL[out]
    overflowed = int((torch.isfinite(value) & torch.isinf(rounded)).sum())
    return as_bytes(rounded), chunk_sums(value), overflowed, int((~torch.isfinite(value)).sum())


def chunk_sums(value: torch.Tensor) -> list[float]:
    """The definition, spelled out: 1024 lanes in order, folded by halves."""
    sums = []
    for chunk in torch.split(value.double(), 65536) if value.numel() else []:
        lanes = np.zeros(1024)
        for row in torch.split(chunk, 1024):
            lanes[: row.numel()] += row.numpy()
        while lanes.size > 1:
            lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
        sums.append(float(lanes[0]))
    return sums


def same(got: list[float], wanted: list[float]) -> bool:
    return len(got) == len(wanted) and all(
        struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))  # 0.0 is not -0.0
        for a, b in zip(got, wanted, strict=True)
    )


def draw(count: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Values of all magnitudes, among them subnormals of each type, zeros of both signs and values near overflow."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1.0, 1e-3, 1e-7, 6e-8, 1e-40, 6e4, 0.0, -0.0])
    pick = torch.randint(len(scale), (count,), generator=g)
    return (torch.randn(count, generator=g) * scale[pick]).to(dtype)
