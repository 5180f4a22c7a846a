"""Meta's original layout, `consolidated.NN.pth` with params.json, as tensors under transformers' names.

Nothing is converted: an entry says which parts of which files make up a tensor, and `tensor_reader.py` joins and orders them
while it reads. Each file holds some rows or some columns of every matrix, and all norms, of which the first file's are used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from baize_engine.checkpoint import names, strict_json
from baize_engine.checkpoint.config_file import DEFAULT_THETA, MAX_HEAD, is_usable
from baize_engine.checkpoint.entry import Entry, JoinedEntry, TensorEntry, check_count
from baize_engine.checkpoint.index import Index
from baize_engine.checkpoint.os_errors import stat_of
from baize_engine.checkpoint.torch_file import read_torch
from baize_engine.errors import CheckpointError, ConfigError
from baize_engine.printable import brief

SHARDS = "consolidated.*.pth"
PARAMS = "params.json"
MAX_PARTS = 1 << 16  # tensors in all files together: LLaMA 405B has about 18 000 in 16 files
SKIPPED = "rope.freqs"  # computed from params.json
_LAYER = re.compile(r"layers\.(\d{1,4})\.(.+)\.weight")
_WHOLE = {"tok_embeddings.weight": names.EMBED, "norm.weight": names.NORM, "output.weight": names.HEAD}
_PARTS = {
    "attention.wq": names.Q, "attention.wk": names.K, "attention.wv": names.V, "attention.wo": names.O,
    "feed_forward.w1": names.GATE, "feed_forward.w2": names.DOWN, "feed_forward.w3": names.UP,
    "attention_norm": names.ATTENTION_NORM, "ffn_norm": names.MLP_NORM,
}  # fmt: skip
_BY_COLUMNS = ("attention.wo", "feed_forward.w2")  # others are split by rows, the embedding by rows or columns
# rows that rotate together are adjacent here, and half a head apart in transformers
_INTERLEAVED = ("attention.wq", "attention.wk")


def is_meta(folder: Path) -> bool:
    """Whether `folder` holds this layout's files."""
    return next(folder.glob(SHARDS), None) is not None


def read_meta(folder: Path) -> tuple[Index, dict[str, Any]]:
    """Read the index of `folder`, under transformers' names, and params.json in the normalised keys of config.json.

    The config lacks max_position_embeddings, which params.json does not give. CheckpointError or ConfigError names the file and
    tensor, what was found and wanted.
    """
    params = _Params(folder / PARAMS)
    files = _files(folder)
    stats = {path: stat_of(path) for path in files}
    shards: list[dict[str, TensorEntry]] = []
    for path in files:
        shards.append({entry.name: entry for entry in read_torch(path)})
        odd = sorted(shards[-1].keys() ^ shards[0].keys())
        if odd:
            raise CheckpointError(f"{path}: {odd[0]} is in only one of it and {files[0].name}, wanted the same tensors")
        check_count(folder, len(files) * len(shards[0]), MAX_PARTS)
    entries: dict[str, Entry] = {}
    for name in shards[0]:
        if name != SKIPPED:
            entry = _entry(name, [shard[name] for shard in shards], params)
            entries[entry.name] = entry
    _check_vocabulary(entries, params)
    return Index(folder, entries, stats), _config(entries, params)


class _Params:
    """The checked values of params.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = strict_json.read(path)
        self.dim, self.heads, self.layers = (self._count(key) for key in ("dim", "n_heads", "n_layers"))
        self.kv_heads = self._count("n_kv_heads") if self.raw.get("n_kv_heads") is not None else self.heads
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ConfigError(f"{path}: dim {self.dim} over {self.heads} n_heads is not an even number of rows a head")
        self.head = self.dim // self.heads
        if self.head > MAX_HEAD:
            raise ConfigError(f"{path}: heads of {self.head} rows, wanted at most {MAX_HEAD}")
        self.eps = self._number("norm_eps", None)
        self.theta = self._number("rope_theta", DEFAULT_THETA)
        if self.theta <= 0:
            raise ConfigError(f"{path}: rope_theta is {self.theta}, wanted a positive number")

    def _count(self, key: str) -> int:
        value = self.raw.get(key)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ConfigError(f"{self.path}: {key} is {brief(value)}, wanted a positive number")
        return value

    def _number(self, key: str, default: float | None) -> float:
        value: Any = self.raw.get(key, default)
        if not is_usable(value):
            raise ConfigError(f"{self.path}: {key} is {brief(value)}, wanted a number")
        return float(value)


def _files(folder: Path) -> tuple[Path, ...]:
    """The shards of `folder` in order. CheckpointError if one is missing."""
    found = sorted(path.name for path in folder.glob(SHARDS))
    wanted = [f"consolidated.{number:02d}.pth" for number in range(len(found))]
    if found != wanted:
        odd = next(name for name in wanted if name not in found)
        raise CheckpointError(f"{folder}: it has {', '.join(found)}, and {odd} is missing")
    return tuple(folder / name for name in found)


def _entry(name: str, parts: list[TensorEntry], params: _Params) -> Entry:
    """The entry of tensor `name`, of which each file has one of `parts`, under its name in transformers."""
    first = parts[0]
    where = f"{first.path}: {name}"
    match = _LAYER.fullmatch(name)
    part = match[2] if match else None
    target = names.layer(int(match[1]), _PARTS[part]) if match and part in _PARTS else _WHOLE.get(name)
    if target is None:
        raise CheckpointError(f"{where}: not a tensor of a LLaMA in Meta's layout")
    for other in parts:
        if (other.shape, other.dtype) != (first.shape, first.dtype):
            found = f"{other.dtype} {list(other.shape)}, and {first.dtype} {list(first.shape)} in {first.path.name}"
            raise CheckpointError(f"{other.path}: {name} is {found}: wanted equal parts")
    if len(first.shape) == 1:
        return replace(first, name=target)
    if len(first.shape) != 2:
        raise CheckpointError(f"{where} has shape {list(first.shape)}, wanted a vector or a matrix")
    axis = 1 if part in _BY_COLUMNS or (name == "tok_embeddings.weight" and first.shape[1] != params.dim) else 0
    rows, columns = first.shape
    shape = (rows, columns * len(parts)) if axis else (rows * len(parts), columns)
    _check_shape(where, target, shape, len(parts), params)
    head = params.head if part in _INTERLEAVED else 0
    if head and rows % head:
        raise CheckpointError(f"{where} has {rows} rows, wanted whole heads of {head}")
    if len(parts) == 1 and not head:
        return replace(first, name=target)
    return JoinedEntry(target, first.dtype, shape, tuple(parts), axis, head)


def _check_shape(where: str, target: str, shape: tuple[int, ...], count: int, params: _Params) -> None:
    """Check the joined shape against params.json, as far as that tells. The usual cause of an error is a missing shard."""
    rows = {"q_proj": params.dim, "k_proj": params.kv_heads * params.head, "v_proj": params.kv_heads * params.head,
            "o_proj": params.dim, "down_proj": params.dim}  # fmt: skip
    module = target.split(".")[-2]
    wanted = [rows.get(module, shape[0]), shape[1] if module == "down_proj" else params.dim]
    if wanted != list(shape):
        found = f"{where}: {count} file(s) make a matrix of {list(shape)}"
        raise CheckpointError(f"{found}, wanted {wanted} by {params.path.name}: are all consolidated.*.pth here?")


def _check_vocabulary(entries: Mapping[str, Entry], params: _Params) -> None:
    """Check that embedding, output head and params.json agree. A vocab_size of -1 there means: as the tokenizer has it."""
    vocab_size = params.raw.get("vocab_size", -1)
    table, head = entries.get(names.EMBED), entries.get(names.HEAD)
    if table is None or head is None:
        raise CheckpointError(f"{params.path.parent}: no tok_embeddings.weight or output.weight, wanted a LLaMA")
    rows = table.shape[0]
    if head.shape[0] != rows or (vocab_size != -1 and vocab_size != rows):
        found = f"tok_embeddings.weight has {rows} rows, output.weight {head.shape[0]}"
        raise CheckpointError(f"{params.path.parent}: {found}, and params.json says vocab_size {brief(vocab_size)}")


def _config(entries: Mapping[str, Entry], params: _Params) -> dict[str, Any]:
    """params.json in the normalised keys of config.json."""
    config: dict[str, Any] = {
        "hidden_size": params.dim, "num_attention_heads": params.heads, "num_key_value_heads": params.kv_heads,
        "head_dim": params.head, "num_hidden_layers": params.layers, "rms_norm_eps": params.eps, "rope_theta": params.theta,
    }  # fmt: skip
    gate = entries.get(names.layer(0, names.GATE))
    if gate is not None:
        config["intermediate_size"] = gate.shape[0]
    if not params.raw.get("use_scaled_rope"):
        config["rope"] = {"rope_type": "default"}
    return config
