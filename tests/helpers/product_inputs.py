"""Activations and weights for tests of the products."""

from __future__ import annotations

from typing import Any

import torch

from baize_engine.kernels import quantized

EPS = 1e-5


ACTIVATIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def rand(*shape: int, seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def matrix(n: int, k: int, kind: str, dtype: torch.dtype, seed: int = 5) -> Any:
    """int4 in rows, as on a GPU."""
    weight = rand(n, k, seed=seed, dtype=dtype, scale=k**-0.5)
    if kind == "same":
        return weight
    made = quantized.quantize(weight, kind)
    return quantized.in_rows(made) if isinstance(made, quantized.Int4Weight) else made


def case(rows: int, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x and a norm weight."""
    return rand(rows, k, seed=rows, dtype=dtype, scale=3), (1 + rand(k, seed=2, scale=0.3)).to(dtype)
