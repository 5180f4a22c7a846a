"""Diffs of one base with vocabularies of their own."""

from __future__ import annotations

from pathlib import Path

import tiny


def write_diffs(root: Path, cfg: dict, extra: tuple[int, ...] = (1, 0, 3)) -> list[Path]:
    """Diffs of one base that add different numbers of rows, in different shards."""
    folders = []
    for number, rows in enumerate(extra):
        grown = {**cfg, "vocab_size": cfg["vocab_size"] + rows, "torch_dtype": "float32"}
        diff = tiny.state(grown, 10 + number, scale=0.003)
        diff = {name: t - 1 if name.endswith("norm.weight") else t for name, t in diff.items()}
        form = "bin" if number % 2 else "safetensors"
        folders.append(tiny.write_model(root / f"diff{number}", grown, diff, form, shards=number + 1))
    return folders
