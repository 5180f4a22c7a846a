"""Checkpoints of any shape that take no disk: safetensors files whose data is a hole and reads as zeros."""

from __future__ import annotations

import json
from pathlib import Path

from shapes import Shape

from baize_engine.checkpoint.writer import TensorSpec, lay_out


def write_sparse(folder: Path, shape: Shape, rows: int, dtype: str) -> Path:
    """A model of `shape` with a vocabulary of `rows`, all zeros, in shards of transformers' customary size."""
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


def write_sparse_pair(root: Path, shape: Shape) -> tuple[Path, Path]:
    """A float16 base and a float32 diff with one more row, as published."""
    base = write_sparse(root / "base", shape, shape.vocabulary, "float16")
    return base, write_sparse(root / "diff", shape, shape.vocabulary + 1, "float32")
