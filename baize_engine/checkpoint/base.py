"""A base model in either layout: its tensors, its files and its config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from baize_engine.checkpoint import config_file
from baize_engine.checkpoint.index import holds_model, read_index
from baize_engine.checkpoint.joined import Entry
from baize_engine.checkpoint.meta_layout import PARAMS, is_meta, read_meta
from baize_engine.checkpoint.os_errors import reading


class Index(Protocol):
    """What recovery needs from an index. `CheckpointIndex` and `MetaIndex` implement it."""

    @property
    def folder(self) -> Path: ...
    @property
    def entries(self) -> Mapping[str, Entry]: ...
    @property
    def files(self) -> tuple[Path, ...]: ...
    @property
    def stats(self) -> Mapping[Path, os.stat_result]: ...


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
        meta_index = read_meta(folder)
        return Base(meta_index, meta_index.config, folder / PARAMS)
    return Base(read_index(folder), config_file.read_normalised(folder), folder / "config.json")
