"""One tensor of a checkpoint: what it is and where its bytes lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.errors import CheckpointError
from baize_engine.printable import shown

MAX_NAME = 512  # characters
# of a checkpoint: the largest LLaMA, of 405B, has 1138, and each takes a kilobyte or two in a run
MAX_TENSORS = 1 << 14


@dataclass(frozen=True, slots=True)
class Run:
    """Elements of one part of a tensor that lie one after another in its file, from element `first` of that part on.

    `places`: for each stretch of them (its place in what is read, its length), in elements; a place of None is not wanted.
    """

    part: int
    first: int
    places: list[tuple[int | None, int]]


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """`shape` elements of `dtype`, row-major, from byte `offset` of the file `path`.

    `narrowed`: the file has them as float64, and they are rounded to float32, which `dtype` says, while they are read. Who
    reads bytes from `offset` on without `TensorReader` looks at this first.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    narrowed: bool = False

    @classmethod
    def stored(cls, name: str, dtype: str, shape: tuple[int, ...], path: Path, offset: int) -> TensorEntry:
        """The entry of what a file has as `dtype`."""
        if dtype == "float64":  # no kernel takes it, and nobody runs a model in it
            return cls(name, "float32", shape, path, offset, narrowed=True)
        return cls(name, dtype, shape, path, offset)

    @property
    def stored_dtype(self) -> str:
        """The type of the elements in the file."""
        return "float64" if self.narrowed else self.dtype

    @property
    def stored_nbytes(self) -> int:
        """Bytes of the file."""
        return self.numel * ITEMSIZE[self.stored_dtype]

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes once they are read."""
        return self.numel * ITEMSIZE[self.dtype]

    @property
    def parts(self) -> tuple[TensorEntry, ...]:
        return (self,)

    @property
    def grain(self) -> int:
        return 1

    def runs(self, begin: int, end: int) -> Iterator[Run]:
        """Where elements [begin, end) lie."""
        yield Run(0, begin, [(0, end - begin)])


def refuse_pointer(path: Path, beginning: bytes) -> None:
    """CheckpointError if a file that begins so is a Git-LFS pointer in place of what it is called."""
    if beginning.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git-LFS pointer, not the file itself: run `git lfs pull` in its repository")


def check_count(path: Path, count: int, most: int = MAX_TENSORS) -> None:
    """CheckpointError where `path`, a file or folder, has more tensors than any model."""
    if count > most:
        raise CheckpointError(f"{path}: {count} tensors, wanted at most {most}")


def check_name(path: Path, name: str) -> None:
    """CheckpointError unless a tensor's name could be written to a file again: short, and of whole characters."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise CheckpointError(
            f"{path}: a tensor is called {shown(name)!r}, wanted at most {MAX_NAME} printable characters"
        )
