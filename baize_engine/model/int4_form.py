"""The int4 form of a model: its matrices quantised from the weights in memory, all else shared with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from baize_engine.backend.choose import quantizer
from baize_engine.errors import CheckpointError
from baize_engine.interrupts import Check, in_threads
from baize_engine.kernels.quantized import Int4Weight, Weight, dequantize, empty
from baize_engine.kernels.quantized import rows as rows_of
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.cost import matrix_bytes
from baize_engine.model.llama import Llama

PIECE = 1 << 22  # weights quantised at a time, to bound temporary memory


@dataclass(frozen=True)
class Piece:
    """Rows `source` of the matrix `name`, to be quantised into `target`."""

    name: str
    source: Weight
    target: Weight


def int4_form(model: Llama) -> Llama:
    """A model with the int4 codes of `model`'s float or int8 matrices, joined as `load_weights` joins them.

    Embedding, norms and a tied output head are those of `model` itself; activations are rounded, which it may not allow.
    CheckpointError names a matrix with a value that is not finite. ValueError if the matrices are int4 already.
    """
    weights: dict[str, Weight] = {}
    pieces: list[Piece] = []
    quantized = names.quantized(model.config)
    for name, shape in names.packed(model.config).items():
        if name not in quantized:
            weights[name] = model.weights[name]
            continue
        made = weights[name] = empty("int4", shape[0], shape[1], model.device)
        begin = 0
        for part in (name,) if name in model.weights else names.parts(name):
            source = model.weights[part]
            if isinstance(source, Int4Weight):
                raise ValueError(f"{part} is int4 already, wanted float or int8")
            pieces += _cut(part, source, rows_of(made, begin, begin + source.shape[0]))
            begin += source.shape[0]
    quantize = quantizer(model.device)

    def fill(piece: Piece, check: Check) -> None:
        check()
        with torch.inference_mode():
            try:
                values = piece.source if isinstance(piece.source, Tensor) else dequantize(piece.source)
                quantize(values, "int4", out=piece.target)
            except ValueError as error:
                raise CheckpointError(f"{piece.name}: {error}") from None

    in_threads(fill, pieces, torch.get_num_threads() if model.device == "cpu" else 1, "baize-int4")
    return replace(model, weights=weights, exact_activations=False)


def added_bytes(config: ModelConfig) -> int:
    """Bytes that the int4 form takes beside a model of this config, without what pads rows to whole panels."""
    shapes = names.packed(config)
    return sum(matrix_bytes(shapes[name][0], shapes[name][1], "int4") for name in names.quantized(config))


def _cut(name: str, source: Weight, target: Weight) -> Iterator[Piece]:
    rows, columns = source.shape
    step = max(1, PIECE // columns)
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        yield Piece(name, rows_of(source, begin, end), rows_of(target, begin, end))
