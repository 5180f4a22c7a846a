"""The launch settings in use: from a card's table if there is one (kernels/tuned/<gpu>.json), else by the rules.

benchmarks/tune_kernels.py makes a table on a card; it holds the settings that were faster there than the rules, by op, bits of
the weights, shape and rows. Other cards of the same generation use the nearest card's table. What a table lacks goes by the
rules. Settings change no bit of a result, so a table can only change the time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from . import settings
from .settings import TUNED_ROWS, AttentionSettings, ProductSettings, SampleSettings

FOLDER = Path(__file__).parent / "tuned"
NEAR = 0.01  # share by which the rows of two matrices may differ to use the same settings: 320 of 32000
Key = tuple[str, int, tuple[int, ...]]  # op, bits of the weight's or the cache's values, shape


@dataclass(frozen=True)
class Table:
    """The settings measured to be the fastest on one card. `entries`: key -> one of TUNED_ROWS -> settings."""

    name: str  # of the file, or of what made the table
    gpu: str
    capability: tuple[int, int]
    sms: int
    entries: dict[Key, dict[int, Any]]

    def settings(self, op: str, bits: int, shape: tuple[int, ...], rows: int) -> Any:
        """The settings for the smallest of TUNED_ROWS that is at least `rows`; None if the table has none.

        More rows than any of TUNED_ROWS use the largest, since a program holds no more rows. A shape that was not measured
        uses the settings of one with nearly as many rows of the matrix, or logits: finetunes have a few tokens more than
        their base.
        """
        bucket = next((most for most in TUNED_ROWS if rows <= most), TUNED_ROWS[-1])
        wanted = op, bits, shape
        if wanted not in self._near:
            self._near[wanted] = self._nearest(wanted)
        return self.entries.get(self._near[wanted], {}).get(bucket)

    @cached_property
    def _near(self) -> dict[Key, Key]:
        """Results of `_nearest`, cached because every launch asks."""
        return {}

    def _nearest(self, wanted: Key) -> Key:
        """The key of the entry to use for `wanted`; `wanted` itself if none is near."""
        op, bits, (count, *rest) = wanted
        if wanted in self.entries or op == "attention":
            return wanted
        near = [
            key
            for key in self.entries
            if key[:2] == (op, bits) and [*key[2][1:]] == rest and abs(key[2][0] - count) <= NEAR * count
        ]
        return min(near, key=lambda key: (abs(key[2][0] - count), key[2]), default=wanted)


NO_TABLE = Table("rules", "", (0, 0), 0, {})
_in_use: ContextVar[Table | None] = ContextVar("table", default=None)


def read(path: Path) -> Table:
    """Read a table from a file. ValueError names the file and what is wrong with it."""
    try:
        content = json.loads(path.read_text())
        entries: dict[Key, dict[int, Any]] = {}
        for number, entry in enumerate(content["entries"]):
            try:
                op, bits, rows = entry["op"], entry["bits"], entry["rows"]
                if type(rows) is not int or rows not in TUNED_ROWS:
                    raise ValueError(f"rows is {rows!r}, wanted one of {', '.join(map(str, TUNED_ROWS))}")
                launch = settings.from_dict(op, bits, entry["settings"])
                by_rows = entries.setdefault((op, bits, tuple(entry["shape"])), {})
                if rows in by_rows:
                    raise ValueError(f"{op} of {bits} bits, shape {entry['shape']}, {rows} rows is there twice")
                by_rows[rows] = launch
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"entry {number}: {_reason(error)}") from error
        major, minor = content["capability"]
        return Table(path.name, content["gpu"], (int(major), int(minor)), int(content["sms"]), entries)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)


def nearest(tables: Sequence[Table], gpu: str, capability: tuple[int, int], sms: int) -> Table:
    """The table for a card: its own, or the nearest of its generation; NO_TABLE if no card of the generation was tuned.

    gpu: the card's name. capability: its compute capability, (generation, minor). sms: its number of multiprocessors.
    The nearest has the nearest minor number, then the nearest number of multiprocessors.
    """
    generation = [table for table in tables if table.capability[0] == capability[0]]

    def distance(table: Table) -> tuple[bool, int, int, str]:
        return table.gpu != gpu, abs(table.capability[1] - capability[1]), abs(table.sms - sms), table.name

    return min(generation, key=distance, default=NO_TABLE)


@cache
def of_device(device: torch.device) -> Table:
    """The table for a GPU, cached; NO_TABLE in the interpreter."""
    if device.type != "cuda":
        return NO_TABLE
    tables = [read(path) for path in sorted(FOLDER.glob("*.json"))]
    card = torch.cuda.get_device_properties(device)
    return nearest(tables, card.name, (card.major, card.minor), card.multi_processor_count)


@contextmanager
def using(table: Table) -> Iterator[None]:
    """Use `table` (NO_TABLE: the rules) for the launches of this thread in the block, whatever the card.

    Captured graphs keep the settings that they were captured with.
    """
    token = _in_use.set(table)
    try:
        yield
    finally:
        _in_use.reset(token)


def table(device: torch.device) -> Table:
    """The table in use for `device`."""
    return _in_use.get() or of_device(device)


def product(op: str, bits: int, shape: tuple[int, int], rows: int, device: torch.device) -> ProductSettings:
    """The settings of a product of `rows` rows with a weight of `shape`."""
    return table(device).settings(op, bits, shape, rows) or settings.product(op, bits, rows)


def attention(itemsize: int, shape: tuple[int, int, int], rows: int, device: torch.device) -> AttentionSettings:
    """The settings of attention in a decode step of `rows` sequences. `shape`: (heads, key/value heads, head_dim)."""
    return table(device).settings("attention", 8 * itemsize, shape, rows) or settings.attention(itemsize)


def sample(vocabulary: int, rows: int, device: torch.device) -> SampleSettings:
    """The settings of sampling for `rows` rows of logits."""
    return table(device).settings("sample", 32, (vocabulary,), rows) or settings.sample()
