"""One tensor of a checkpoint: its name, type and shape, and where its bytes lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.errors import CheckpointError
from baize_engine.printable import shown

MAX_NAME = 512  # characters
MAX_TENSORS = 1 << 14  # in a checkpoint: LLaMA 405B has 1138, and each takes 1 to 2 KB of memory in a run


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
class TensorEntry:
    """A tensor of `shape` elements of `dtype`, row-major, from byte `offset` of the file `path`.

    `narrowed`: the file has float64, which is rounded to float32 (the `dtype`) while it is read. Check this before reading
    bytes at `offset` without `TensorReader`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
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
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, once read."""
        return self.numel * ITEMSIZE[self.dtype]

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


def refuse_pointer(path: Path, beginning: bytes) -> None:
    """Raise CheckpointError if `beginning`, the first bytes of `path`, are those of a Git-LFS pointer."""
    if beginning.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git-LFS pointer, not the file itself: run `git lfs pull` in its repository")


def check_count(path: Path, count: int, most: int = MAX_TENSORS) -> None:
    """Raise CheckpointError if `path`, a file or folder, has more than `most` tensors."""
    if count > most:
        raise CheckpointError(f"{path}: {count} tensors, wanted at most {most}")


def check_name(path: Path, name: str) -> None:
    """Raise CheckpointError unless a tensor's name is short and printable, so that it can be written to a file again."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise CheckpointError(
            f"{path}: a tensor is called {shown(name)!r}, wanted at most {MAX_NAME} printable characters"
        )
