"""One tensor of a checkpoint: its name, type and shape, and where its bytes lie. Arithmetic only; `tensor_reader.py` reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.errors import CheckpointError
from baize_engine.printable import shown

MAX_NAME = 512  # characters
MAX_TENSORS = 1 << 14  # in a checkpoint: LLaMA 405B has 1138, and each takes 1 to 2 KB of memory in a run
BAND = 1024  # rows in one run of columns: the pieces that one preadv fills; also bounds the memory of a run


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive elements of part number `part` of a tensor, from element `first` of that part on.

    `places`: (destination, length) of each stretch, in elements; destination is the offset in the range that is being read,
    or None for elements that are skipped.
    """

    part: int
    first: int
    places: list[tuple[int | None, int]]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's name, type (one of `dtypes.ITEMSIZE`) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.numel * ITEMSIZE[self.dtype]


@dataclass(frozen=True, slots=True)
class TensorEntry(TensorSpec):
    """A tensor that lies row-major from byte `offset` of the file `path`.

    `narrowed`: the file has float64, which is rounded to float32 (the `dtype`) while it is read. Check this before reading
    bytes at `offset` without `TensorReader`.
    """

    path: Path
    offset: int
    narrowed: bool = False

    @classmethod
    def stored(cls, name: str, dtype: str, shape: tuple[int, ...], path: Path, offset: int) -> TensorEntry:
        """The entry of a tensor that a file stores as `dtype`."""
        if dtype == "float64":  # no kernel takes it, and no model is run in it
            return cls(name, "float32", shape, path, offset, narrowed=True)
        return cls(name, dtype, shape, path, offset)

    @property
    def stored_dtype(self) -> str:
        """The type of the elements in the file, "float64" if narrowed."""
        return "float64" if self.narrowed else self.dtype

    @property
    def stored_nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * ITEMSIZE[self.stored_dtype]

    @property
    def parts(self) -> tuple[TensorEntry, ...]:
        """The stored tensors that make up this one; see `JoinedEntry`."""
        return (self,)

    @property
    def grain(self) -> int:
        """As `JoinedEntry.grain`: any range is read without waste."""
        return 1

    def runs(self, begin: int, end: int) -> Iterator[Run]:
        """Where elements [begin, end) lie."""
        yield Run(0, begin, [(0, end - begin)])


@dataclass(frozen=True, slots=True)
class JoinedEntry(TensorSpec):
    """A tensor made of `parts` of equal shape in several files, joined along `axis` (0 or 1), as Meta's layout has them.

    `head`: rows of an attention head if each head's even rows are to come before its odd ones (parts then hold whole heads);
    0 if rows keep their order. Not a TensorEntry, because it has no single offset to read from.
    """

    parts: tuple[TensorEntry, ...]
    axis: int
    head: int = 0

    @property
    def path(self) -> Path:
        """The file of the first part, for messages."""
        return self.parts[0].path

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
        """Runs if heads are reordered: one for each, whole. Row r of a head is stored at 2r (first half) or 2(r - half) + 1."""
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
            part, number = divmod(head, heads_per_part)
            yield Run(part, number * block, [place for place in places if place[1]])


@dataclass(frozen=True, slots=True)
class SlicedEntry(TensorSpec):
    """Some rows and columns of the matrix `source`: `shape` from its row `row` and its column `column` on."""

    source: Entry
    row: int
    column: int

    @property
    def path(self) -> Path:
        """The file of the first part, for messages."""
        return self.source.path

    @property
    def parts(self) -> tuple[TensorEntry, ...]:
        """The stored tensors that the source is made of."""
        return self.source.parts

    @property
    def grain(self) -> int:
        """As `JoinedEntry.grain`, for a slice that begins with a whole head."""
        return max(1, self.source.grain // self.source.shape[1] * self.shape[1])

    def runs(self, begin: int, end: int) -> Iterator[Run]:
        """Where elements [begin, end) lie, and nothing else. Columns of several rows are one run if a part has no others."""
        width, full = self.shape[1], self.source.shape[1]
        if width == full:
            yield from self.source.runs(begin + self.row * full, end + self.row * full)
            return
        waiting: dict[int, Run] = {}  # of each part, and the element where it ends
        ends: dict[int, int] = {}
        for row in range(begin // width, (end - 1) // width + 1):
            low, high = max(begin, row * width), min(end, (row + 1) * width)
            shift = (self.row + row) * full + self.column - row * width
            for run in self.source.runs(low + shift, high + shift):
                places = [(None if at is None else at + low - begin, count) for at, count in run.places]
                last, follows = waiting.get(run.part), ends.get(run.part) == run.first
                ends[run.part] = run.first + sum(count for _, count in places)
                if last is not None and follows and len(last.places) < BAND:
                    last.places.extend(places)
                    continue
                if last is not None:
                    yield last
                waiting[run.part] = Run(run.part, run.first, places)
        yield from waiting.values()


Entry = TensorEntry | JoinedEntry | SlicedEntry


def rows_of(entry: Entry, begin: int, end: int) -> Entry:
    """Rows [begin, end) of a matrix or vector; those of a JoinedEntry, a matrix, are whole heads where it orders them."""
    if (begin, end) == (0, entry.shape[0]):
        return entry
    shape = (end - begin, *entry.shape[1:])
    if isinstance(entry, TensorEntry):
        row = prod(entry.shape[1:]) * ITEMSIZE[entry.stored_dtype]
        return replace(entry, shape=shape, offset=entry.offset + begin * row)
    return SlicedEntry(entry.name, entry.dtype, shape, entry, begin, 0)


def columns_of(entry: Entry, begin: int, end: int) -> Entry:
    """Columns [begin, end) of all rows of a matrix."""
    if (begin, end) == (0, entry.shape[1]):
        return entry
    return SlicedEntry(entry.name, entry.dtype, (entry.shape[0], end - begin), entry, 0, begin)


def check_count(path: Path, count: int, most: int = MAX_TENSORS) -> None:
    """Raise CheckpointError if `path`, a file or folder, has more than `most` tensors."""
    if count > most:
        raise CheckpointError(f"{path}: {count} tensors, wanted at most {most}")


def check_name(path: Path, name: str) -> None:
    """Raise CheckpointError unless a tensor's name is short and printable, so that it can be written to a file again."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        wanted = f"at most {MAX_NAME} printable characters"
        raise CheckpointError(f"{path}: a tensor is called {shown(name)!r}, wanted {wanted}")
