"""The readers that `fuzz.py` feeds: where each looks for its file, the cases that it begins with, what it must make sure of."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import fuzz_cases as cases

from baize_engine.checkpoint import base, config_file, index, manifest, safetensors_file, torch_file
from baize_engine.checkpoint.entry import TensorEntry
from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
from baize_engine.text.special_ids import Own, special_ids, text_ids

NAMES = ("torch", "safetensors", "index", "manifest", "config", "meta", "words")


class Case(Protocol):
    def changed(self, rng: random.Random) -> Any: ...
    def render(self, rng: random.Random) -> bytes: ...


class Broken(BaseException):
    """A promise that was not kept. Not an Exception, so that no reader can catch it."""


class Whole(random.Random):
    """Damages nothing."""

    def random(self) -> float:
        return 1.0


@dataclass
class Target:
    """A reader. `file`: where cases are written; `read` raises a BaizeError or Broken; `pool`: cases to change."""

    file: Path
    read: Callable[[], None]
    pool: list[Case]
    seen: set[tuple[str, int, int]] = field(default_factory=set)
    cases: int = 0
    accepted: int = 0
    slowest: float = 0.0


def check(entries: list[TensorEntry], inside: Path) -> None:
    """What any reader must make sure of."""
    for entry in entries:
        end = entry.offset + entry.stored_nbytes
        if entry.path.parent != inside or not 0 <= entry.offset <= end <= entry.path.stat().st_size:
            raise Broken(f"accepted {entry!r:.300}")
        if (
            not all(type(length) is int and 0 <= length < 1 << 63 for length in entry.shape)
            or type(entry.name) is not str
        ):
            raise Broken(f"accepted {entry!r:.300}")


def targets(folder: Path) -> dict[str, Target]:
    """The readers, each with a folder of its own for its cases."""
    for name in NAMES:
        (folder / name).mkdir()
    good = {"w": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
            "v": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}}  # fmt: skip
    shards = folder / "index"
    for name, tensor in zip(("a.safetensors", "b.safetensors"), ("w", "v"), strict=True):
        header = {tensor: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}
        (shards / name).write_bytes(cases.SafetensorsCase(header, data=4).render(Whole()))
    os.mkfifo(shards / "pipe")
    (shards / "out").symlink_to("/etc/passwd")
    (shards / "loop").symlink_to("loop")
    (shards / "sub").mkdir()
    weights = {"metadata": {"total_size": 8}, "weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
    indexes = [cases.JsonCase(weights)]
    own, elsewhere = "model.safetensors.index.json", ("../config/config.json", "/etc/passwd", "x" * 300)
    for file in ("pipe", "out", "loop", "sub", own, *elsewhere):
        indexes.append(cases.JsonCase({**weights, "weight_map": {"w": file}}))
    record = {"dtype": "float16", "shape": [2, 3], "sha256": "00", "sum": 0.5, "overflowed": 0, "nonfinite": 0}
    source = {"name": "a", "bytes": 5, "mtime_ns": 7, "sha256": None}
    told = {
        "format": "baize_manifest", "version": 1, "operation": "recover", "backend": "x", "versions": {"a": "b"},
        "sources": {"base": [source]}, "tensors": {"w": record, "v": record}, "files": {"a": "00"}, "base_rows": {},
    }  # fmt: skip
    config = {
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "rms_norm_eps": 1e-6, "vocab_size": 4, "max_position_embeddings": 8, "torch_dtype": "float16", "rope_theta": 1e4,
        "rope_scaling": {"type": "linear", "factor": 2.0}, "tie_word_embeddings": False, "bos_token_id": 1,
    }  # fmt: skip
    words = {
        "bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "<|im_end|>"}, "eos_token_id": [2, 5],
        "add_bos_token": True, "add_eos_token": None, "model_max_length": 10**30, "additional_special_tokens": ["<x>"],
        "added_tokens_decoder": {"2": {"content": "</s>", "special": True}, "5": {"content": "<|im_end|>"}, "6": "<x>"},
    }  # fmt: skip
    (folder / "words" / "config.json").write_text('{"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": -1}')
    params = {"dim": 4, "n_heads": 1, "n_layers": 1, "norm_eps": 1e-6, "vocab_size": -1, "multiple_of": 4}
    shapes = {"tok_embeddings.weight": (3, 4), "output.weight": (3, 4), "norm.weight": (4,), "rope.freqs": (2,)}
    shapes |= {f"layers.0.attention.{n}.weight": (4, 4) for n in ("wq", "wk", "wv", "wo")}
    ops, entries = [b"\x80\2", b"}", b"("], []
    for number, (name, shape) in enumerate(shapes.items()):
        numel = shape[0] * (shape[1] if len(shape) > 1 else 1)
        ops += [cases.text_op(name), *cases.tensor_ops("HalfStorage", str(number), numel, 0, shape)]
        entries.append(cases.Entry(f"m/data/{number}", bytes(2 * numel)))
    (folder / "meta" / "consolidated.00.pth").write_bytes(
        cases.TorchCase([*ops, b"u", b"."], entries).render(rng=Whole())
    )

    def listed(read: Callable[[Path], list[TensorEntry]], path: Path) -> Callable[[], None]:
        return lambda: check(read(path), path.parent)

    def indexed() -> None:
        check(list(index.read_index(shards).entries.values()), shards)

    def summed() -> None:
        found = manifest.read_manifest(folder / "manifest")
        if not isinstance(found.sum, float) or not found.encode():
            raise Broken(f"accepted {found!r:.300}")

    def configured() -> None:
        config_file.read_normalised(folder / "config")
        ended(folder / "config")

    def worded() -> None:
        ended(folder / "words")

    def ended(where: Path) -> None:
        """The same object as config, generation config and tokenizer config: each takes the keys that are its own."""
        files, told = TokenizerFiles.read(where), config_file.read_config(where)
        added = files.added(3, 8)
        text = text_ids(files, Own(1, 2, 0), lambda name: added[name][0] if name in added else None)
        found = special_ids(told, files.config, text, 8)
        ids = [*found.end_ids, text.bos_id, *(token_id for token_id, _ in added.values())]
        if not all(type(token_id) is int and 0 <= token_id < 8 for token_id in ids) or 1 in found.end_ids:
            raise Broken(f"accepted {found!r:.300}")

    def joined() -> None:
        for entry in base.read_base(folder / "meta").index.entries.values():
            check(list(entry.parts), folder / "meta")

    torch_path, safe_path = folder / "torch" / "m.bin", folder / "safetensors" / "m.safetensors"
    return {
        "torch": Target(torch_path, listed(torch_file.read_torch, torch_path), list(cases.torch_seeds())),
        "safetensors": Target(safe_path, listed(safetensors_file.read_safetensors, safe_path), [cases.SafetensorsCase(good)]),
        "index": Target(shards / "model.safetensors.index.json", indexed, list(indexes)),
        "manifest": Target(folder / "manifest" / manifest.MANIFEST_NAME, summed, [cases.JsonCase(told)]),
        "config": Target(folder / "config" / "config.json", configured, [cases.JsonCase(config)]),
        "words": Target(folder / "words" / "tokenizer_config.json", worded, [cases.JsonCase(words)]),
        "meta": Target(folder / "meta" / "params.json", joined, [cases.JsonCase(params)]),
    }  # fmt: skip
