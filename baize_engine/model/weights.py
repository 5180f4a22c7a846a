"""Loads a model's weights: checks the checkpoint's tensors against the config, and maps files where it can.

Both an unused tensor and a missing one are errors. Weights that must be converted, joined, quantised or moved to a GPU go
through `model/weight_loader.py`.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from baize_engine.checkpoint.dtypes import FLOATS, ITEMSIZE
from baize_engine.checkpoint.index import CheckpointIndex, TensorEntry, read_index
from baize_engine.checkpoint.names import is_recomputed
from baize_engine.errors import BaizeWarning, CheckpointError, RequestError
from baize_engine.kernels.quantized import Int4Weight, Weight, in_rows
from baize_engine.kernels.quantized import matrix as matrix_of
from baize_engine.model import names, old_int4
from baize_engine.model.config import ModelConfig
from baize_engine.model.narrowing import overflowed, warn_overflow
from baize_engine.model.share import Share
from baize_engine.model.slices import slices
from baize_engine.model.stored_slices import StoredSlices
from baize_engine.model.weight_loader import Piece, allocate, fill, load, pack, packed_shapes, pieces_of


def load_weights(
    source: str | Path | CheckpointIndex,
    config: ModelConfig,
    dtype: str = "auto",
    device: str = "cpu",
    quantize: str | None = None,
    share: Share | None = None,
) -> Mapping[str, Weight]:
    """The weights of a model: {transformers' name: tensor or quantised matrix on `device`}.

    dtype: type of the tensors; "auto" keeps the files' types, float64 as float32.
    quantize: "int8" or "int4" quantises the matrices while they load. A model that is stored quantised stays as it is.

    On the CPU, tensors in the files' own types and stored quantised matrices are read-only views of mapped files, read when
    first used; only float64 is converted at once. On a GPU, and in quantised models, q, k, v and gate, up are joined
    (names.JOINED).

    share: only this rank's part of the files is read and held, as `names.shapes` says; the files are checked as a whole.
    ConfigError where the model cannot be split so.

    RequestError for a wrong `dtype`; CheckpointError names the file and the tensor that is missing, unused
    or of the wrong shape or type.
    """
    index = source if isinstance(source, CheckpointIndex) else read_index(source)
    if dtype != "auto" and dtype not in FLOATS:
        raise RequestError(f"dtype is {dtype!r}, wanted auto, {', '.join(FLOATS)}")
    check_index(index, config)
    if share is not None:
        return _load_share(index, config, dtype, device, quantize, share)
    if config.quantization is not None:
        return _load_quantized(index, config, dtype, device)
    if device != "cpu" or quantize is not None:
        return pack(_kept(index), config, dtype, device, quantize)
    views = _views({name: index.entries[name] for name in names.shapes(config)})
    return views if dtype == "auto" else _converted(views, dtype)


def _load_share(
    index: CheckpointIndex, config: ModelConfig, dtype: str, device: str, quantize: str | None, share: Share
) -> dict[str, Weight]:
    """The weights of a rank: as a whole model's, except that parts other than ranges of rows are copied even on the CPU."""
    share.check(config)
    if config.quantization is None and (device != "cpu" or quantize is not None):
        entries = slices(_kept(index), names.shapes(config, share), config, share)
        return pack(entries, config, dtype, device, quantize, share)
    wanted, matrices = names.shapes(config, share), dict[str, Weight]()
    if config.quantization is not None:
        stored, quantized = StoredSlices(index, config, share, device), names.quantized(config)
        matrices = {name: stored.read(name) for name in quantized}
        wanted = {name: shape for name, shape in names.packed(config, share).items() if name not in quantized}
        _warn_old(index, config)
    entries = slices(_kept(index), wanted, config, share)
    whole = {
        name: entry
        for name, entry in entries.items()
        if device == "cpu" and isinstance(entry, TensorEntry) and entry.shape == wanted[name]
    }
    views = _views(whole)
    weights = {**matrices, **(views if dtype == "auto" else _converted(views, dtype))}
    pieces: list[Piece] = []
    for name in entries:
        if name not in whole:
            weights[name] = allocate(name, wanted[name], entries, config, dtype, device, None, share)
            pieces += pieces_of(name, entries, weights[name], config, share)
    fill(pieces, device)
    return weights


def _converted(weights: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The weights as `dtype`. Tensors that have it already are not copied."""
    made = {name: weight.to(getattr(torch, dtype)) for name, weight in weights.items()}
    warn_overflow(((name, overflowed(weights[name], made[name])) for name in sorted(made)), dtype)
    return made


def check_index(index: CheckpointIndex, config: ModelConfig) -> None:
    """CheckpointError unless `load_weights` would take the tensors of these files: their names, shapes and types."""
    if config.quantization is None:
        kept = _kept(index)
        check({name: entry.shape for name, entry in kept.items()}, config, str(index.folder))
        for entry in kept.values():
            _check_float(entry)
        return
    kind, scheme = config.quantization, str(config.scheme)
    wanted = packed_shapes(config, kind, scheme)
    _check_names(index.entries, wanted, set(wanted), str(index.folder))
    for name, (stored, shape) in wanted.items():
        entry = index.entries[name]
        if entry.shape != shape or (stored is not None and entry.dtype != stored):
            raise CheckpointError(
                f"{entry.path}: {name} is {entry.dtype} of shape {list(entry.shape)}, wanted {stored or 'a float'} of "
                f"{list(shape)} for {kind} of scheme {scheme}"
            )
        if stored is None:
            _check_float(entry)


def _kept(index: CheckpointIndex) -> dict[str, TensorEntry]:
    """The tensors of the files without those that are computed again, whatever the files say."""
    return {name: entry for name, entry in index.entries.items() if not is_recomputed(name)}


def check(found: Mapping[str, tuple[int, ...]], config: ModelConfig, where: str) -> None:
    """CheckpointError, naming `where`, unless the tensors `found`, {name: shape}, are exactly those that `config` needs."""
    wanted = names.shapes(config)
    allowed = {*wanted, names.HEAD} if config.tie_word_embeddings else set(wanted)  # some files store a tied head too
    _check_names(found, wanted, allowed, where)
    for name, shape in wanted.items():
        if found[name] != shape:
            raise CheckpointError(f"{where}: {name} has shape {list(found[name])}, its config.json wants {list(shape)}")


def _check_names(found: Collection[str], wanted: Collection[str], allowed: set[str], where: str) -> None:
    missing = [name for name in wanted if name not in found]
    unused = [name for name in found if name not in allowed]
    for kind, listed in (("lacks", missing), ("holds a tensor that no part of the model uses:", unused)):
        if listed:
            more = f" and {len(listed) - 1} more" if len(listed) > 1 else ""
            raise CheckpointError(f"{where} {kind} {listed[0]}{more} (by its config.json)")


def _load_quantized(index: CheckpointIndex, config: ModelConfig, dtype: str, device: str) -> dict[str, Weight]:
    kind, scheme = str(config.quantization), str(config.scheme)
    wanted = packed_shapes(config, kind, scheme)
    if device == "cpu":
        tensors = _views({name: index.entries[name] for name in wanted})
    else:
        kinds = {
            name: stored or (index.entries[name].dtype if dtype == "auto" else dtype)
            for name, (stored, _) in wanted.items()
        }
        tensors = load(index.entries, kinds, device)
    weights: dict[str, Weight] = {}
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(names.STORED)}
    weights |= plain if dtype == "auto" else _converted(plain, dtype)
    quantized = names.quantized(config)
    for name, shape in names.packed(config).items():
        if name in quantized:
            stem = name.removesuffix(names.WEIGHT)
            stored_tensors = [tensors.pop(stem + part) for part in names.STORED if stem + part in tensors]
            try:
                weights[name] = _matrix(config, stored_tensors, shape[1])
            except ValueError as error:
                raise CheckpointError(f"{index.entries[stem + names.STORED[0]].path}: {stem}: {error}") from None
    _warn_old(index, config)
    return weights


def _warn_old(index: CheckpointIndex, config: ModelConfig) -> None:
    """A BaizeWarning where the files' matrices are not held as they are stored."""
    if config.held != config.quantization:
        warnings.warn(
            f"{index.folder} holds int4 weights of the old scheme {config.scheme}, which are held as int8 and take twice the "
            "memory: quantise the original model again",
            BaizeWarning,
            stacklevel=3,
        )


def _matrix(config: ModelConfig, tensors: Sequence[Tensor], columns: int) -> Weight:
    """A quantised matrix of its stored tensors, as the ops of their device take it."""
    if config.held != config.quantization:
        values, scales = tensors
        return old_int4.to_int8(values, scales, columns)
    matrix = matrix_of(str(config.quantization), tensors, columns)
    return in_rows(matrix) if isinstance(matrix, Int4Weight) and tensors[0].device.type != "cpu" else matrix


def nbytes(
    index: CheckpointIndex,
    config: ModelConfig,
    dtype: str = "auto",
    quantize: str | None = None,
    share: Share | None = None,
) -> int:
    """Bytes that the weights will take in memory, loaded with `dtype`, `quantize` and `share` as in `load_weights`."""
    if config.held != config.quantization or (share is not None and config.quantization is not None):
        quantize = config.held
    elif config.quantization is not None or (quantize is None and share is None):
        return sum(
            entry.numel * ITEMSIZE[entry.dtype if dtype == "auto" or entry.dtype not in FLOATS else dtype]
            for entry in _kept(index).values()
        )
    if quantize is None:
        shapes: dict[str, tuple[str | None, tuple[int, ...]]] = {
            name: (None, shape) for name, shape in names.shapes(config, share).items()
        }
    else:
        shapes = packed_shapes(config, quantize, share=share)
    total = 0
    for name, (stored, shape) in shapes.items():
        source = names.EMBED if config.tie_word_embeddings and name == names.HEAD else name
        # a missing tensor is refused by name later
        own = index.entries[source].dtype if source in index.entries else "float32"
        total += torch.Size(shape).numel() * ITEMSIZE[stored or (own if dtype == "auto" else dtype)]
    return total


def _views(found: Mapping[str, TensorEntry]) -> dict[str, Tensor]:
    """The tensors `found` on the CPU: views of mapped files, except those that are narrowed while they are read."""
    maps = {path: _map(path) for path in {entry.path for entry in found.values()}}
    read = load(found, {name: entry.dtype for name, entry in found.items() if entry.narrowed}, "cpu")
    return {name: read[name] if name in read else view(entry, maps[entry.path]) for name, entry in found.items()}


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _check_float(entry: TensorEntry) -> None:
    if entry.dtype not in FLOATS:
        raise CheckpointError(f"{entry.path}: {entry.name} is {entry.dtype}, wanted one of {', '.join(FLOATS)}")


def view(entry: TensorEntry, content: mmap.mmap) -> Tensor:
    """A read-only view of the tensor `entry`, which is not narrowed, in its mapped file `content`."""
    kind = getattr(torch, entry.dtype)
    if entry.offset % ITEMSIZE[entry.dtype]:  # after a header of odd length; torch views only aligned memory
        own = bytearray(content[entry.offset : entry.offset + entry.nbytes])
        return torch.frombuffer(own, dtype=kind).view(entry.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # we only read
        return torch.frombuffer(content, dtype=kind, count=entry.numel, offset=entry.offset).view(entry.shape)
