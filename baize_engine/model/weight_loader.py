"""Loads weights that must be joined, converted, quantised or moved to a GPU: ranges of rows, read by parallel workers.

Each worker owns one staging buffer (pinned for a GPU) and a stream. It reads some rows of a tensor from the file, and the
device converts or quantises them into place. Peak memory is the packed weights plus the workers' buffers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from baize_engine.backend.choose import Quantizer, quantizer
from baize_engine.checkpoint.buffers import aligned_buffer
from baize_engine.checkpoint.entry import Entry, TensorEntry
from baize_engine.checkpoint.file_io import open_read, read_into
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.errors import CheckpointError
from baize_engine.interrupts import Check, in_threads
from baize_engine.kernels.quantized import Int8Weight, Weight, empty, layout
from baize_engine.kernels.quantized import rows as rows_of
from baize_engine.model import names, old_int4
from baize_engine.model.config import ModelConfig
from baize_engine.model.narrowing import overflowed, warn_overflow
from baize_engine.model.share import Share
from baize_engine.model.slices import padding, targets

PIECE = 16 << 20  # bytes of a tensor that a worker reads at a time; at least one row
WORKERS, MOST_WORKERS, GPU_WORKERS = 2, 16, 6


@dataclass(frozen=True)
class Piece:
    """The rows of the tensor `entry`, from `first` on, that fill `targets`: each with its equal part of the columns, those that
    the tensor lacks at its end being zeros."""

    entry: Entry
    first: int
    targets: tuple[Weight, ...]

    @property
    def rows(self) -> int:
        return self.targets[0].shape[0]


def packed_shapes(
    config: ModelConfig, kind: str, scheme: str | None = None, share: Share | None = None
) -> dict[str, tuple[str | None, tuple[int, ...]]]:
    """{name in the file: (dtype, shape)} of a model quantised as `kind`; dtype None stands for any float type.

    scheme: of the file; by default the current one. share: the tensors of a rank, as if they were stored.
    """
    old = (kind, scheme) == ("int4", old_int4.SCHEME)
    shapes: dict[str, tuple[str | None, tuple[int, ...]]] = {}
    quantized = names.quantized(config)
    for name, shape in names.packed(config, share).items():
        if name in quantized:
            stem = name.removesuffix(names.WEIGHT)
            tensors = old_int4.layout(*shape) if old else layout(kind, *shape)
            shapes |= {stem + part: stored for part, stored in zip(names.STORED, tensors, strict=False)}
        else:
            shapes[name] = (None, shape)
    return shapes


def pack(
    entries: Mapping[str, Entry],
    config: ModelConfig,
    dtype: str,
    device: str,
    quantize: str | None,
    share: Share | None = None,
) -> dict[str, Weight]:
    """{name: tensor or quantised matrix}, loaded to `device`. `entries` must match the config (`weights.check`).

    share: `entries` are its slices of the tensors (`slices.slices`).
    """
    weights: dict[str, Weight] = {}
    pieces: list[Piece] = []
    for name, shape in names.packed(config, share).items():
        weights[name] = allocate(name, shape, entries, config, dtype, device, quantize, share)
        pieces += pieces_of(name, entries, weights[name], config, share)
    fill(pieces, device)
    return weights


def allocate(
    name: str,
    shape: tuple[int, ...],
    entries: Mapping[str, Entry],
    config: ModelConfig,
    dtype: str,
    device: str,
    quantize: str | None,
    share: Share | None = None,
) -> Weight:
    """Uninitialised memory for the weight `name` of `shape`, packed or not; its rows of padding are zeros.

    CheckpointError if `dtype` is "auto" and the tensors that it joins have different types.
    """
    if quantize is not None and name in names.quantized(config):
        rows, columns = shape
        weight: Weight = empty(quantize, rows, columns, device)
    else:
        kinds = {entries[part].dtype for part in names.parts(name)} if dtype == "auto" else {dtype}
        if len(kinds) > 1:
            raise CheckpointError(f"{name} would join tensors of {' and '.join(sorted(kinds))}: choose a dtype")
        weight = torch.empty(shape, dtype=getattr(torch, kinds.pop()), device=device)
    _zero_padding(name, weight, config, device, share)
    return weight


def _zero_padding(name: str, weight: Weight, config: ModelConfig, device: str, share: Share | None) -> None:
    """Makes the rows of padding of `weight`, the weight `name`, zeros, in the form that the quantiser gives them."""
    parts = names.parts(name)
    for number, part in enumerate(parts, 1):
        missing = 0 if part.endswith(names.BY_COLUMNS) else padding(part, config, share)
        if not missing:
            continue
        end = weight.shape[0] // len(parts) * number  # what has padding is joined only to matrices of the same size
        rest = rows_of(weight, end - missing, end)
        if isinstance(rest, Tensor):
            rest.zero_()
        else:
            kind = "int8" if isinstance(rest, Int8Weight) else "int4"
            quantizer(device)(torch.zeros(rest.shape, device=device), kind, out=rest)


def pieces_of(
    name: str, entries: Mapping[str, Entry], target: Weight, config: ModelConfig, share: Share | None = None
) -> Iterator[Piece]:
    """The pieces that fill `target`, the weight `name`, but for its rows of padding."""
    begin = 0
    for part in names.parts(name):
        into = targets(part, target, share)
        rows = entries[part].shape[0]
        yield from _cut(entries[part], [rows_of(each, begin, begin + rows) for each in into])
        begin += rows + padding(part, config, share)


def load(entries: Mapping[str, Entry], kinds: Mapping[str, str], device: str) -> dict[str, Tensor]:
    """{name: tensor on `device`} for each name in `kinds`, {name: dtype}."""
    tensors = {
        name: torch.empty(entries[name].shape, dtype=getattr(torch, kind), device=device)
        for name, kind in kinds.items()
    }
    fill([piece for name, tensor in tensors.items() for piece in _cut(entries[name], [tensor])], device)
    return tensors


def _cut(entry: Entry, into: Sequence[Weight]) -> Iterator[Piece]:
    """The pieces that fill `into` with all rows of `entry`: each with its equal part of the columns."""
    rows = entry.shape[0]
    step = max(1, PIECE * rows // max(1, entry.nbytes))
    for first in range(0, rows, step):
        yield Piece(entry, first, tuple(rows_of(each, first, min(first + step, rows)) for each in into))


def fill(pieces: list[Piece], device: str) -> None:
    """Reads the pieces into their targets. A BaizeWarning reports finite values that became infinite.

    Raises the first worker's error; the targets are then incomplete.
    """
    if not pieces:
        return
    size = max(piece.rows * _row_bytes(piece.entry) for piece in pieces)
    files = {path: open_read(path) for path in {piece.entry.path for piece in pieces if _in_one_piece(piece.entry)}}
    count = (
        min(max(WORKERS, torch.get_num_threads()), MOST_WORKERS)
        if device == "cpu"
        else min(GPU_WORKERS, os.cpu_count() or 1)
    )
    shares = [pieces[n::count] for n in range(count)]
    if device != "cpu":
        torch.cuda.synchronize(device)  # queued work of another stream may still write to the targets' memory
    try:
        shares_lost = in_threads(
            lambda share, check: _work(share, files, size, device, check), filter(None, shares), count, "baize-load"
        )
    finally:
        for descriptor in files.values():
            os.close(descriptor)
    lost = sorted(loss for share in shares_lost for loss in share)
    for dtype in sorted({dtype for dtype, _, _ in lost}):
        warn_overflow(((name, count) for kind, name, count in lost if kind == dtype), dtype)


def _work(
    pieces: list[Piece], files: Mapping[Path, int], size: int, device: str, check: Check
) -> list[tuple[str, str, int]]:
    """Fills the pieces' targets. Returns (dtype, tensor name, count) of finite values that became infinite."""
    lost: list[tuple[str, str, int]] = []
    on_gpu = device != "cpu"
    staging = torch.empty(size, dtype=torch.uint8, pin_memory=True) if on_gpu else None
    memory = staging.numpy().data if staging is not None else aligned_buffer(size)
    stream = torch.cuda.Stream(device) if on_gpu else None
    quantize = quantizer(device)
    with torch.cuda.stream(stream) if stream is not None else nullcontext(), torch.inference_mode():
        for piece in pieces:
            check()
            entry, rows = piece.entry, piece.rows
            row = _row_bytes(entry)
            view = memory[: rows * row]
            if not _in_one_piece(entry):
                columns = prod(entry.shape[1:])
                with TensorReader(entry) as reader:
                    reader.read(piece.first * columns, (piece.first + rows) * columns, view)
            elif isinstance(entry, TensorEntry):
                read_into(files[entry.path], view, entry.offset + piece.first * row, f"{entry.path}: {entry.name}")
            read = torch.frombuffer(view, dtype=getattr(torch, entry.dtype)).view(rows, *entry.shape[1:])
            read = read.to(device, non_blocking=True)
            for target, part in zip(piece.targets, column_parts(read, piece.targets), strict=True):
                if isinstance(target, Tensor):
                    target.copy_(part)
                    if count := overflowed(part, target):
                        lost.append((str(target.dtype).removeprefix("torch."), entry.name, count))
                else:
                    _quantize(entry, part.contiguous(), target, quantize)
            if stream is not None:
                stream.synchronize()  # before the staging buffer is reused
    return lost


def column_parts(read: Tensor, targets: Sequence[Weight]) -> Sequence[Tensor]:
    """What each of `targets` takes of `read`, rows of a tensor: an equal part of the columns, with zeros for those it lacks."""
    width = read.shape[-1]
    wanted = targets[0].shape[-1] * len(targets)
    padded = torch.nn.functional.pad(read, (0, wanted - width)) if wanted > width else read
    return padded.chunk(len(targets), -1)


def _quantize(entry: Entry, read: Tensor, target: Weight, quantize: Quantizer) -> None:
    kind = "int8" if isinstance(target, Int8Weight) else "int4"
    try:
        quantize(read, kind, out=target)
    except ValueError as error:
        raise CheckpointError(f"{entry.path}: {entry.name}: {error}") from None


def _in_one_piece(entry: Entry) -> bool:
    """Whether any range of the tensor is one range of its file, in the type in which it is used."""
    return isinstance(entry, TensorEntry) and not entry.narrowed


def _row_bytes(entry: Entry) -> int:
    return entry.nbytes // max(1, entry.shape[0])
