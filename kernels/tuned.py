"""Which launch settings are in use: a card's own table where there is one (kernels/tuned/<gpu>.json), else the rules.

A table is made on a card by benchmarks/tune_kernels.py and holds what was faster there than the rules, by op, bits of the
weights, shape and rows. It serves cards of the same generation, the nearest one's being taken. What it does not hold goes by
the rules. Settings change no bit of a result, so that a table can only change the time.
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
NEAR = 0.01  # share by which the rows of two matrices may differ and be launched alike: 320 of 32000
Key = tuple[str, int, tuple[int, ...]]  # op, bits of a weight's or the cache's values, shape


@dataclass(frozen=True)
class Table:
    """Settings that were measured to be the fastest on one card. `entries`: for each key, by TUNED_ROWS."""

    name: str  # of the file, or what made it
    gpu: str
    capability: tuple[int, int]
    sms: int
    entries: dict[Key, dict[int, Any]]

    def settings(self, op: str, bits: int, shape: tuple[int, ...], rows: int) -> Any:
        """Those for the least of TUNED_ROWS that is not below `rows` (for more than all of them the greatest, as a program
        holds no more rows), None where there are none.

        A shape that was not measured takes those of one with nearly as many rows of a matrix, or logits: finetunes have a few
        tokens more than their base.
        """
        bucket = next((most for most in TUNED_ROWS if rows <= most), TUNED_ROWS[-1])
        asked = op, bits, shape
        if asked not in self._near:
            self._near[asked] = self._nearest(asked)
        return self.entries.get(self._near[asked], {}).get(bucket)

    @cached_property
    def _near(self) -> dict[Key, Key]:
        """Where what was asked for was found: launches ask again and again."""
        return {}

    def _nearest(self, asked: Key) -> Key:
        op, bits, (count, *rest) = asked
        if asked in self.entries or op == "attention":
            return asked
        able = [
            key
            for key in self.entries
            if key[:2] == (op, bits) and [*key[2][1:]] == rest and abs(key[2][0] - count) <= NEAR * count
        ]
        return min(able, key=lambda key: (abs(key[2][0] - count), key[2]), default=asked)


NO_TABLE = Table("rules", "", (0, 0), 0, {})
_in_use: ContextVar[Table | None] = ContextVar("table", default=None)


def read(path: Path) -> Table:
    """The table in a file; ValueError names the file and what is wrong with it."""
    try:
        content = json.loads(path.read_text())
        entries: dict[Key, dict[int, Any]] = {}
        for number, entry in enumerate(content["entries"]):
            try:
                op, bits, rows = entry["op"], entry["bits"], entry["rows"]
                if type(rows) is not int or rows not in TUNED_ROWS:
                    raise ValueError(f"rows is {rows!r}, wanted one of {', '.join(map(str, TUNED_ROWS))}")
                found = settings.from_dict(op, bits, entry["settings"])
                places = entries.setdefault((op, bits, tuple(entry["shape"])), {})
                if rows in places:
                    raise ValueError(f"{op} of {bits} bits, shape {entry['shape']}, {rows} rows is there twice")
                places[rows] = found
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"entry {number}: {_said(error)}") from error
        major, minor = content["capability"]
        return Table(path.name, content["gpu"], (int(major), int(minor)), int(content["sms"]), entries)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {_said(error)}") from error


def _said(error: Exception) -> str:
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)


def nearest(tables: Sequence[Table], gpu: str, capability: tuple[int, int], sms: int) -> Table:
    """The table for a card: its own, else that of its generation (capability's first number) whose second number is the
    nearest, then the number of multiprocessors; NO_TABLE where no card of the generation was tuned."""
    able = [table for table in tables if table.capability[0] == capability[0]]
    return min(
        able,
        key=lambda one: (one.gpu != gpu, abs(one.capability[1] - capability[1]), abs(one.sms - sms), one.name),
        default=NO_TABLE,
    )


@cache
def of_device(device: torch.device) -> Table:
    """The table for a GPU, read once; NO_TABLE in the interpreter."""
    if device.type != "cuda":
        return NO_TABLE
    tables = [read(path) for path in sorted(FOLDER.glob("*.json"))]
    card = torch.cuda.get_device_properties(device)
    return nearest(tables, card.name, (card.major, card.minor), card.multi_processor_count)


@contextmanager
def using(table: Table) -> Iterator[None]:
    """Launches of this thread take their settings from `table` (NO_TABLE: the rules), whatever the card. Graphs keep those
    with which they were captured."""
    before = _in_use.set(table)
    try:
        yield
    finally:
        _in_use.reset(before)


def table(device: torch.device) -> Table:
    """The table in use for `device`."""
    return _in_use.get() or of_device(device)


def product(op: str, bits: int, shape: tuple[int, int], rows: int, device: torch.device) -> ProductSettings:
    """How a product of `rows` rows with a weight of `shape` is launched."""
    return table(device).settings(op, bits, shape, rows) or settings.product(op, bits, rows)


def attention(itemsize: int, shape: tuple[int, int, int], rows: int, device: torch.device) -> AttentionSettings:
    """How attention of a decode step of `rows` sequences is launched; `shape`: heads, heads of the cache, head_dim."""
    return table(device).settings("attention", 8 * itemsize, shape, rows) or settings.attention(itemsize)


def sample(vocabulary: int, rows: int, device: torch.device) -> SampleSettings:
    """How a token is chosen for each of `rows` rows of logits."""
    return table(device).settings("sample", 32, (vocabulary,), rows) or settings.sample()
