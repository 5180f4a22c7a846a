"""Weights of a decoder: mapped from a checkpoint's files without a copy, strict both ways.

A tensor that the config does not name and a parameter that no file fills are both errors.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from baize_engine.checkpoint.dtypes import FLOATS, ITEMSIZE
from baize_engine.checkpoint.index import CheckpointIndex, TensorEntry, read_index
from baize_engine.errors import CheckpointError, RequestError
from baize_engine.model import names
from baize_engine.model.config import ModelConfig


def load_weights(
    source: str | Path | CheckpointIndex, config: ModelConfig, dtype: str = "auto", device: str = "cpu"
) -> dict[str, Tensor]:
    """The weights by transformers' names, on `device`, of `dtype` ("auto": as in the files).

    On the CPU with the files' own type they are read-only views of mapped files: nothing is read before it is used.
    """
    index = source if isinstance(source, CheckpointIndex) else read_index(source)
    if dtype != "auto" and dtype not in FLOATS:
        raise RequestError(f"dtype is {dtype!r}, wanted auto, {', '.join(FLOATS)}")
    kept = {name: entry for name, entry in index.entries.items() if not name.endswith(names.IGNORED_SUFFIX)}
    check({name: entry.shape for name, entry in kept.items()}, config, str(index.folder))
    maps = {path: _map(path) for path in index.files}
    weights = {}
    for name in names.shapes(config):
        tensor = _view(kept[name], maps[kept[name].path])
        weights[name] = tensor.to(device=device, dtype=None if dtype == "auto" else getattr(torch, dtype))
    return weights


def check(found: Mapping[str, tuple[int, ...]], config: ModelConfig, where: str) -> None:
    """CheckpointError unless `found`, {name: shape}, is just what `config` asks for."""
    wanted = names.shapes(config)
    allowed = {*wanted, names.HEAD} if config.tie_word_embeddings else set(wanted)  # a tied head may be stored too
    missing = [name for name in wanted if name not in found]
    unused = [name for name in found if name not in allowed]
    for kind, listed in (("lacks", missing), ("holds a tensor that no part of the model uses:", unused)):
        if listed:
            more = f" and {len(listed) - 1} more" if len(listed) > 1 else ""
            raise CheckpointError(f"{where} {kind} {listed[0]}{more} (by its config.json)")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise CheckpointError(f"{where}: {name} has shape {list(found[name])}, its config.json wants {list(shape)}")


def nbytes(index: CheckpointIndex, dtype: str = "auto") -> int:
    """Bytes that the weights will take in memory."""
    kept = [entry for name, entry in index.entries.items() if not name.endswith(names.IGNORED_SUFFIX)]
    return sum(entry.numel * ITEMSIZE[entry.dtype if dtype == "auto" else dtype] for entry in kept)


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _view(entry: TensorEntry, content: mmap.mmap) -> Tensor:
    if entry.dtype not in FLOATS:
        raise CheckpointError(f"{entry.path}: {entry.name} is {entry.dtype}, wanted one of {', '.join(FLOATS)}")
    kind = getattr(torch, entry.dtype)
    if entry.offset % ITEMSIZE[entry.dtype]:  # a header of odd length: torch views aligned memory only
        own = bytearray(content[entry.offset : entry.offset + entry.nbytes])
        return torch.frombuffer(own, dtype=kind).view(entry.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # nor do we write
        return torch.frombuffer(content, dtype=kind, count=entry.numel, offset=entry.offset).view(entry.shape)
