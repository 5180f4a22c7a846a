"""Checkpoints of any shape that take no disk: files whose data is a hole and reads as zeros."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from shapes import Shape

from baize_engine.checkpoint.names import INV_FREQ
from baize_engine.checkpoint.writer import TensorSpec, lay_out


def write_sparse(folder: Path, shape: Shape, rows: int, dtype: str) -> Path:
    """A model of `shape` with a vocabulary of `rows`, all zeros, as safetensors of transformers' customary size."""
    folder.mkdir(parents=True)
    specs = [TensorSpec(name, dtype, dims) for name, dims in shape.tensors(rows).items()]
    shards = lay_out(specs)
    for shard in shards:
        with open(folder / shard.filename, "wb") as file:
            file.write(shard.header)
            file.truncate(shard.nbytes)
    if len(shards) > 1:
        names = {name: shard.filename for shard in shards for name in shard.offsets}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "config.json").write_text(json.dumps(shape.config(rows, dtype)))
    return folder


def write_sparse_bin(folder: Path, shape: Shape, rows: int, dtype: str, shards: int) -> Path:
    """The same as `.bin` shards with rotary buffers, as of early 2023. torch lays them out without their data."""
    folder.mkdir(parents=True)
    tensors = shape.tensors(rows)
    head = shape.hidden // shape.heads // 2
    tensors |= {f"model.layers.{n}.self_attn{INV_FREQ}": (head,) for n in range(shape.layers)}
    names = sorted(tensors, key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split(".")])
    weight_map = {}
    for number in range(shards):
        group = names[len(names) * number // shards : len(names) * (number + 1) // shards]
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        with torch.serialization.skip_data():
            torch.save({name: torch.empty(tensors[name], dtype=getattr(torch, dtype)) for name in group}, folder / file)
        weight_map.update(dict.fromkeys(group, file))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(shape.config(rows, dtype)))
    return folder


def write_sparse_pair(root: Path, shape: Shape) -> tuple[Path, Path]:
    """A float16 base and a float32 diff with one more row, as published."""
    base = write_sparse(root / "base", shape, shape.vocabulary, "float16")
    return base, write_sparse(root / "diff", shape, shape.vocabulary + 1, "float32")
