"""A base model in either layout: its tensors, its files and its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baize_engine.checkpoint import config_file
from baize_engine.checkpoint.index import Index, holds_model, read_index
from baize_engine.checkpoint.meta_layout import PARAMS, is_meta, read_meta
from baize_engine.checkpoint.os_errors import reading


@dataclass(frozen=True)
class Base:
    """A base model. `config` is normalised (`config_file.normalise`) and lacks keys that its file does not give."""

    index: Index
    config: Mapping[str, Any]
    config_path: Path


def read_base(folder: Path) -> Base:
    """Read the base in `folder`: transformers' layout if there is one, else Meta's. Errors as for `read_index`."""
    with reading(folder):
        meta = is_meta(folder) and not holds_model(folder)
    if meta:
        return Base(*read_meta(folder), folder / PARAMS)
    return Base(read_index(folder), config_file.read_normalised(folder), folder / "config.json")
