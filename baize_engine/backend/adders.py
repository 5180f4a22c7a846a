"""Adders: the arithmetic of recovery's workers, from buffers to a buffer. `choose.py` picks the class.

An adder belongs to one worker and is called by one thread at a time. `add` has the contract of `baize_engine._C.diff_add`:
all adders give equal bits and equal sums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from baize_engine.checkpoint.buffers import SLACK, aligned_buffer
from baize_engine.checkpoint.os_errors import reading
from baize_engine.checkpoint.tensor_reader import FileRange

Stats = tuple[list[float], int, int]  # chunk sums, overflowed, nonfinite


class Operand(NamedTuple):
    """Elements in memory, and the canonical name of their type."""

    view: memoryview
    dtype: str


class Adder(ABC):
    """Combines pieces of two tensors."""

    name: str  # its row in the table of `diff_add` (choose.py)
    # bytes by which its buffers exceed a piece, so that whole pages fit; 0 if they do not suit direct reads
    slack = SLACK

    def buffer(self, nbytes: int) -> memoryview:
        """`nbytes` of host memory of the kind that suits this adder, page-aligned where the platform allows."""
        return aligned_buffer(nbytes)

    @abstractmethod
    def add(self, base: Operand, other: Operand, out: Operand, *, subtract: bool = False) -> Stats:
        """out = other + base, or other - base with `subtract`. Returns the chunks' sums and the counts of special values."""

    def add_files(self, base: FileRange, other: FileRange, out: Operand, *, subtract: bool = False) -> Stats | None:
        """`add` over the first elements of two file ranges, as many as `out` holds. Suits files in the page cache.

        None if a file ends too early, or if this adder takes operands from memory only; the contents of `out` are then
        undefined. CheckpointError if a file cannot be read.
        """
        return None


class CppAdder(Adder):
    """The C++ kernel in one implementation, on the calling thread: the workers are the parallelism."""

    def __init__(self, implementation: str) -> None:
        self.name = f"cpp-{implementation}"
        self._implementation = implementation

    def add(self, base: Operand, other: Operand, out: Operand, *, subtract: bool = False) -> Stats:
        from baize_engine import _C

        return _C.diff_add(base, other, out, implementation=self._implementation, threads=1, subtract=subtract)

    def add_files(self, base: FileRange, other: FileRange, out: Operand, *, subtract: bool = False) -> Stats | None:
        from baize_engine import _C

        try:
            return _C.diff_add_files(base, other, out, implementation=self._implementation, subtract=subtract)
        except OSError as error:
            with reading(error.filename):
                raise


class TorchAdder(Adder):
    """The reference definition over buffers: slow, and right wherever torch runs."""

    name = "torch"

    def add(self, base: Operand, other: Operand, out: Operand, *, subtract: bool = False) -> Stats:
        import torch

        from baize_engine.kernels import reference

        left, right, target = (
            torch.frombuffer(operand.view, dtype=getattr(torch, operand.dtype)) for operand in (base, other, out)
        )
        result, stats = reference.diff_add(left, right, target.dtype, subtract=subtract)
        target.copy_(result)
        return stats.chunk_sums.tolist(), int(stats.overflowed), int(stats.nonfinite)
