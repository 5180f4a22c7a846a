"""A base model, in whatever layout its folder has: its tensors, its files and what its config says."""

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
    """The part of an index that recovery needs; `CheckpointIndex` and `MetaIndex` have it."""

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
    """`config`: normalised (`config_file.normalise`), without keys that the folder does not tell; `config_path`: its file."""

    index: Index
    config: Mapping[str, Any]
    config_path: Path


def read_base(folder: Path) -> Base:
    """The base in `folder`: transformers' layout where there is one, else Meta's. Errors as for `read_index`."""
    with reading(folder):
        meta = is_meta(folder) and not holds_model(folder)
    if meta:
        found = read_meta(folder)
        return Base(found, found.config, folder / PARAMS)
    index = read_index(folder)
    return Base(index, config_file.read_normalised(folder), folder / "config.json")
