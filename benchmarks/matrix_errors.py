"""How far a model's matrices lie from the published ones: squared errors, of our formats and of llama.cpp's as gguf makes them.

An error is relative: the sum of squared differences over the sum of squares.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from baize_engine.kernels.quantized import dequantize
from baize_engine.model import names
from baize_engine.model.llama import Llama

GGUF = ("Q4_0", "Q4_K")  # 4.5 bits a weight, both; gguf only reads Q4_K
SUPERBLOCK = 256  # columns that the longest block of these formats has

Matrices = Mapping[str, Tensor]  # float32, by their published names


def matrices(model: Llama) -> dict[str, Tensor]:
    """The matrices that quantising changes, dequantised where they are."""
    sizes = names.shapes(model.config)
    found: dict[str, Tensor] = {}
    for name, weight in model.weights.items():
        parts = names.parts(name)
        if len(sizes[parts[0]]) == 2 and name != names.EMBED:
            found |= zip(parts, dequantize(weight).split([sizes[part][0] for part in parts]), strict=True)
    return found


def squared_errors(exact: Matrices, found: Matrices) -> dict[str, Any]:
    """The error of all matrices together, and that of the worst with its name."""
    missed = {name: float((found[name] - wanted).double().square().sum()) for name, wanted in exact.items()}
    squares = {name: float(wanted.double().square().sum()) for name, wanted in exact.items()}
    each = {name: missed[name] / squares[name] for name in exact}
    worst = max(each, key=lambda name: each[name])
    return {
        "squared_error": sum(missed.values()) / sum(squares.values()), "of_the_worst": each[worst], "worst_matrix": worst,
    }  # fmt: skip


def has_gguf() -> bool:
    return find_spec("gguf") is not None


def through_gguf(exact: Matrices, kind: str) -> dict[str, Tensor] | None:
    """The matrices quantised to `kind`, one of GGUF, and dequantised by gguf. None where it cannot quantise to that.

    Rows whose columns no block divides are filled up with zeros, where llama.cpp would keep the matrix at 16 bits.
    """
    from gguf import GGMLQuantizationType, quants

    stored = GGMLQuantizationType[kind]
    found = {}
    for name, matrix in exact.items():
        columns = matrix.shape[1]
        whole = torch.nn.functional.pad(matrix, (0, -columns % SUPERBLOCK)).numpy()
        try:
            read = quants.dequantize(quants.quantize(whole, stored), stored)
        except NotImplementedError:
            return None
        found[name] = torch.from_numpy(read)[:, :columns].contiguous()
    return found
