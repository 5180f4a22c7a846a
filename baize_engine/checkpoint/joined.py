"""A tensor stored in parts in several files, or with its rows in another order, addressed as if it were in one piece.

For Meta's original layout (`meta_layout.py`). Pure arithmetic; `tensor_reader.py` reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.entry import Run, TensorEntry

BAND = 1024  # rows in one run of columns: the pieces that one preadv fills; also bounds the memory of a run


@dataclass(frozen=True, slots=True)
class JoinedEntry:
    """A tensor of `shape` made of `parts` of equal shape, joined along `axis` (0 or 1).

    `head`: rows of an attention head if each head's even rows are to come before its odd ones (parts then hold whole heads);
    0 if rows keep their order. Not a TensorEntry, because it has no single offset to read from.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[TensorEntry, ...]
    axis: int
    head: int = 0

    @property
    def path(self) -> Path:
        """The file of the first part, for messages."""
        return self.parts[0].path

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEMSIZE[self.dtype]

    @property
    def grain(self) -> int:
        """Elements: ranges that begin and end at multiples of it are read without reading anything else."""
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
        """Runs if each part holds some columns of every row: consecutive rows of a part are a full row apart in the result."""
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
        """Runs if heads are reordered: one for each head. Row r of a head is stored at 2r (first half) or 2(r - half) + 1."""
        width, half = self.shape[1], self.head // 2
        heads_per_part = self.parts[0].shape[0] // self.head
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
            part, number = divmod(head, heads_per_part)
            yield Run(part, number * block + skipped, [p for p in places[wanted[0] : wanted[-1] + 1] if p[1]])


Entry = TensorEntry | JoinedEntry
