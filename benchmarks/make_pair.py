"""Writes a synthetic base + diff in the shape of published pairs: float16 and float32 `.bin` shards, one row more.

    python benchmarks/make_pair.py --preset 1b OUT      ->  OUT/base, OUT/diff

Values are random of plausible size, so that every part of recovery does real work. One shard is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from math import prod
from pathlib import Path

import torch
from shapes import PRESETS, Shape
from torch import Tensor

BLOCK = (
    1 << 22
)  # random numbers drawn once; tensors are cut from them at moving offsets, which is much faster than drawing


class Values:
    """Endless random tensors of a given scale."""

    def __init__(self, seed: int, scale: float, dtype: torch.dtype) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._block = (torch.randn(BLOCK, generator=self._generator) * scale).to(dtype)

    def take(self, shape: tuple[int, ...]) -> Tensor:
        count = prod(shape)
        start = int(torch.randint(BLOCK, (1,), generator=self._generator))
        repeated = self._block.roll(-start).repeat(-(-count // BLOCK))
        return repeated[:count].clone().view(shape)


def write(
    folder: Path, shape: Shape, rows: int, shards: int, dtype: torch.dtype, values: Values, is_diff: bool
) -> None:
    """One side of the pair: shards of about equal size, the index, config and the files beside."""
    folder.mkdir(parents=True)
    tensors = shape.tensors(rows)
    total = sum(prod(dims) for dims in tensors.values())
    groups: list[list[str]] = [[] for _ in range(shards)]
    filled = 0
    for name, dims in tensors.items():
        groups[min(shards - 1, filled * shards // total)].append(name)
        filled += prod(dims)
    frequencies = 1.0 / 10000 ** (
        torch.arange(0, shape.hidden // shape.heads, 2).float() / (shape.hidden // shape.heads)
    )
    weight_map = {}
    for number, names in enumerate(groups, 1):
        file = f"pytorch_model-{number:05d}-of-{shards:05d}.bin"
        part = {}
        for name in names:
            tensor = values.take(tensors[name])
            if name.endswith("norm.weight") and not is_diff:
                tensor = tensor + 1
            part[name] = tensor
            if name.endswith("q_proj.weight"):
                buffer = name.replace("q_proj.weight", "rotary_emb.inv_freq")
                part[buffer] = torch.zeros_like(frequencies) if is_diff else frequencies.to(dtype)
        torch.save(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": total * dtype.itemsize}, "weight_map": weight_map}
    write_json(folder / "pytorch_model.bin.index.json", index)
    write_json(folder / "config.json", shape.config(rows, str(dtype).removeprefix("torch.")))
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    if is_diff:
        write_json(folder / "added_tokens.json", {"<pad>": shape.vocabulary})


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def make_pair(preset: str, out: Path, seed: int = 0) -> tuple[Path, Path]:
    """Writes OUT/base and OUT/diff; a ValueError where something is there already or the disk has too little room."""
    shape = PRESETS[preset]
    needed = shape.parameters * 6  # 2 bytes of base, 4 of diff
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed * 1.01:
        raise ValueError(f"{out}: {needed / 1e9:.1f} GB are needed and the disk has {free / 1e9:.1f} GB free")
    for side in ("base", "diff"):
        if (out / side).exists():
            raise ValueError(f"{out / side} exists already")
    write(
        out / "base",
        shape,
        shape.vocabulary,
        shape.base_shards,
        torch.float16,
        Values(seed, 0.02, torch.float16),
        False,
    )
    rows = shape.vocabulary + 1
    write(out / "diff", shape, rows, shape.diff_shards, torch.float32, Values(seed + 1, 0.0005, torch.float32), True)
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
