"""A tensor that lies in parts in several files, or with its rows in another order: read by ranges as if it lay whole.

Meta's original layout needs it (`meta_layout.py`). Pure arithmetic; `tensor_reader.py` reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.entry import Run, TensorEntry

BAND = 1024  # rows that one run of columns holds: as many pieces as one call reads into, and no more in memory


@dataclass(frozen=True, slots=True)
class JoinedEntry:
    """`parts` of equal shape, joined along `axis` (0 or 1) into `shape`.

    `head`: rows of an attention head where each head's even rows are to come before its odd ones; 0 where rows stay as
    they are. Parts then hold whole heads. Not a TensorEntry: it has no one offset that a caller could read from.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[TensorEntry, ...]
    axis: int
    head: int = 0

    @property
    def path(self) -> Path:
        """The file of the first part: what messages name."""
        return self.parts[0].path

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEMSIZE[self.dtype]

    @property
    def grain(self) -> int:
        """Ranges that begin and end at multiples of so many elements are read without anything that is not wanted."""
        return self.head * self.shape[1] if self.head else 1

    def runs(self, begin: int, end: int) -> Iterator[Run]:
        """Where elements [begin, end) lie."""
        if self.head:
            yield from self._head_runs(begin, end)
        elif self.axis == 0:
            for number, part in enumerate(self.parts):
                at = number * part.numel
                low, high = max(begin, at), min(end, at + part.numel)
                if low < high:
                    yield Run(number, low - at, [(low - begin, high - low)])
        else:
            yield from self._column_runs(begin, end)

    def _column_runs(self, begin: int, end: int) -> Iterator[Run]:
        """Each part holds some columns of every row: its rows lie one after another, and go a row apart."""
        width, own = self.shape[1], self.parts[0].shape[1]
        below = (end - 1) // width + 1
        for top in range(begin // width, below, BAND):
            for number in range(len(self.parts)):
                first = 0
                places: list[tuple[int | None, int]] = []
                for row in range(top, min(top + BAND, below)):
                    at = row * width + number * own
                    low, high = max(begin, at), min(end, at + own)
                    if low < high:
                        first = first if places else row * own + low - at
                        places.append((low - begin, high - low))
                if places:
                    yield Run(number, first, places)

    def _head_runs(self, begin: int, end: int) -> Iterator[Run]:
        """Row r of a head lies at 2r (first half) or 2(r - half) + 1: a head is read once, its rows go where they belong."""
        width, half = self.shape[1], self.head // 2
        heads_of_a_part = self.parts[0].shape[0] // self.head
        block = self.head * width
        for head in range(begin // block, (end - 1) // block + 1):
            places: list[tuple[int | None, int]] = []
            for stored in range(self.head):
                at = head * block + (stored % 2 * half + stored // 2) * width
                low, high = min(max(begin, at), at + width), max(min(end, at + width), at)
                if low < high:
                    places += [(None, low - at), (low - begin, high - low), (None, at + width - high)]
                else:
                    places.append((None, width))
            wanted = [n for n, (place, count) in enumerate(places) if place is not None and count]
            skipped = sum(count for _, count in places[: wanted[0]])
            part, number = divmod(head, heads_of_a_part)
            yield Run(part, number * block + skipped, [p for p in places[wanted[0] : wanted[-1] + 1] if p[1]])


Entry = TensorEntry | JoinedEntry
