"""Writes a synthetic base + diff in the shape of published pairs: float16 and float32 `.bin` shards, one row more.

    python benchmarks/make_pair.py --preset 1b OUT      ->  OUT/base, OUT/diff

Values are random of plausible size, so that every part of recovery does real work. Memory does not grow with the model:
torch.save lays a shard out without its data, which is then filled in block by block. The zip checksums of the data stay 0;
torch.load, transformers and baize do not look at them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from shapes import PRESETS, Shape

from baize_engine.checkpoint.torch_file import read_torch

BLOCK = 1 << 22  # random numbers drawn once; tensors are cut from them at moving offsets, much faster than drawing
MARGIN = 1 << 20  # bytes for headers, configs and alignment beside the weights


def as_bytes(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.view(torch.uint8).numpy()
    return memoryview(array)


class Values:
    """Endless random numbers of a given scale, as bytes of `dtype`."""

    def __init__(self, seed: int, scale: float, dtype: torch.dtype) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        numbers = torch.randn(BLOCK, generator=self._generator) * scale
        self.dtype = dtype
        self._numbers = numbers.to(dtype)
        self._bytes = as_bytes(self._numbers)

    def blocks(self, count: int) -> list[memoryview]:
        """`count` numbers, as views of the one block: nothing is copied."""
        start = int(torch.randint(BLOCK, (1,), generator=self._generator))
        views = []
        while count:
            taken = min(count, BLOCK - start)
            views.append(self._bytes[start * self.dtype.itemsize : (start + taken) * self.dtype.itemsize])
            start, count = 0, count - taken
        return views

    def near(self, centre: float, count: int) -> list[memoryview]:
        """`count` (fewer than a block) numbers about `centre`, rounded once."""
        start = int(torch.randint(BLOCK - count, (1,), generator=self._generator))
        numbers = self._numbers[start : start + count].float() + centre
        return [as_bytes(numbers.to(self.dtype))]


@dataclass(frozen=True)
class Side:
    """What tells the base from the diff."""

    rows: int
    shards: int
    norm: float  # norm weights lie about 1 in a model and about 0 in a diff
    values: Values


def write(folder: Path, shape: Shape, side: Side) -> None:
    """One side of the pair: shards of about equal size, the index, and the files beside."""
    folder.mkdir(parents=True)
    tensors = shape.tensors(side.rows)
    total = sum(prod(dims) for dims in tensors.values())
    groups: list[dict[str, tuple[int, ...]]] = [{} for _ in range(side.shards)]
    filled = 0
    for name, dims in tensors.items():
        group = groups[min(side.shards - 1, filled * side.shards // total)]
        group[name] = dims
        filled += prod(dims)
        if name.endswith("q_proj.weight"):  # the buffer that transformers kept beside each layer's weights until 4.32
            group[name.replace("q_proj.weight", "rotary_emb.inv_freq")] = (shape.hidden // shape.heads // 2,)
    weight_map = {}
    for number, group in enumerate(groups, 1):
        file = f"pytorch_model-{number:05d}-of-{side.shards:05d}.bin"
        write_shard(folder / file, group, side)
        weight_map.update(dict.fromkeys(group, file))
    index = {"metadata": {"total_size": total * side.values.dtype.itemsize}, "weight_map": weight_map}
    write_json(folder / "pytorch_model.bin.index.json", index)
    write_json(folder / "config.json", shape.config(side.rows, str(side.values.dtype).removeprefix("torch.")))


def write_shard(path: Path, tensors: dict[str, tuple[int, ...]], side: Side) -> None:
    """A torch zip file of random tensors. The empty tensors are address space only: no page of them is touched."""
    with torch.serialization.skip_data():
        torch.save({name: torch.empty(dims, dtype=side.values.dtype) for name, dims in tensors.items()}, path)
    with open(path, "r+b") as file:
        for entry in read_torch(path):
            file.seek(entry.offset)
            for view in content(entry.name, entry.numel, side):
                file.write(view)


def content(name: str, count: int, side: Side) -> list[memoryview]:
    """The bytes of one tensor of `count` elements."""
    if name.endswith("inv_freq"):
        frequencies = 1.0 / 10000 ** (torch.arange(count) / count)
        numbers = (frequencies * side.norm).to(side.values.dtype)  # about zero in a diff
        return [as_bytes(numbers)]
    if name.endswith("norm.weight") and side.norm:
        return side.values.near(side.norm, count)
    return side.values.blocks(count)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_side_files(folder: Path, shape: Shape, is_diff: bool) -> None:
    """Generation config and tokenizer files; the tokenizer.model itself is a trained file and is left out.

    The base's are those of early converters: blank special tokens. The diff's name them, and its added pad token.
    """
    bos, eos, unk = ("<s>", "</s>", "<unk>") if is_diff else ("", "", "")
    tokens = {"bos_token": bos, "eos_token": eos, "unk_token": unk} | ({"pad_token": "<pad>"} if is_diff else {})
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    write_json(folder / "special_tokens_map.json", tokens)
    write_json(
        folder / "tokenizer_config.json",
        {**tokens, "model_max_length": shape.positions, "tokenizer_class": "LlamaTokenizer"},
    )
    if is_diff:
        write_json(folder / "added_tokens.json", {"<pad>": shape.vocabulary})


def make_pair(preset: str, out: Path, seed: int = 0) -> tuple[Path, Path]:
    """Writes OUT/base and OUT/diff; a ValueError where something is there already or the disk has too little room."""
    shape = PRESETS[preset]
    needed = shape.parameters * 2 + (shape.parameters + 2 * shape.hidden) * 4 + MARGIN  # the diff's row in two tensors
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ValueError(f"{out}: {needed / 1e9:.1f} GB are needed and the disk has {free / 1e9:.1f} GB free")
    for side in ("base", "diff"):
        if (out / side).exists():
            raise ValueError(f"{out / side} exists already")
    base = Side(shape.vocabulary, shape.base_shards, 1.0, Values(seed, 0.02, torch.float16))
    diff = Side(shape.vocabulary + 1, shape.diff_shards, 0.0, Values(seed + 1, 0.0005, torch.float32))
    for name, made in (("base", base), ("diff", diff)):
        write(out / name, shape, made)
        write_side_files(out / name, shape, made is diff)
    return out / "base", out / "diff"


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes a synthetic base + diff in the shape of published pairs.")
    parser.add_argument("out", type=Path, help="folder for base/ and diff/")
    parser.add_argument("--preset", choices=PRESETS, default="1b")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        base, diff = make_pair(options.preset, options.out, options.seed)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for folder in (base, diff):
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder}: {len(list(folder.glob('*.bin')))} shards, {size / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
