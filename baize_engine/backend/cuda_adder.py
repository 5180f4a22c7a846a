"""The adder on a GPU: pinned host memory, and two slots of device memory on two streams.

A piece is cut into parts that alternate between the slots, so that the copy in of one part, the kernel of another and the
copy out of a third can overlap; several workers overlap all that with the disk. Its speed has not been measured yet.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from baize_engine.backend.adders import Adder, Operand, Stats
from baize_engine.checkpoint.dtypes import ITEMSIZE

if TYPE_CHECKING:
    import torch

CHUNK = 65536  # elements; the unit of diff_add's sums
PART = 8 * CHUNK  # elements per slot: 2 MiB of float32, enough for a copy to run at the bus's speed
SLOTS = 2
_COMPILING = threading.Lock()  # workers start together: one compiles the kernel, the others wait for it


def parts(count: int, part: int = PART) -> Iterator[tuple[int, int, int]]:
    """(slot, begin, end) of each part of a piece of `count` elements; parts begin at multiples of CHUNK, as the sums need."""
    for number, begin in enumerate(range(0, count, part)):
        yield number % SLOTS, begin, min(begin + part, count)


class CudaAdder(Adder):
    """An adder (see adders.py) on `device`, "cuda" or "cuda:N". For one thread at a time."""

    name = "triton"
    slack = 0  # torch rounds pinned memory up to a power of two, and does not use huge pages

    def __init__(self, device: str) -> None:
        import torch

        self._device = torch.device(device)
        with torch.cuda.device(self._device):
            self._streams = [torch.cuda.Stream() for _ in range(SLOTS)]

        def memory() -> list[torch.Tensor]:
            return [torch.empty(PART * 4, dtype=torch.uint8, device=self._device) for _ in range(3)]

        self._memory = [memory() for _ in range(SLOTS)]
        self._compiled: set[tuple[object, ...]] = set()
        torch.cuda.synchronize(self._device)

    def buffer(self, nbytes: int) -> memoryview:
        """Pinned memory, which the bus copies from and to directly."""
        import torch

        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy().data

    def add(self, base: Operand, other: Operand, out: Operand, *, subtract: bool = False) -> Stats:
        import torch

        from baize_engine.kernels.diff_add import compile_for, launch

        count = len(out.view) // ITEMSIZE[out.dtype]
        if count == 0:
            return [], 0, 0
        host = [torch.frombuffer(part.view, dtype=getattr(torch, part.dtype)) for part in (base, other, out)]
        kinds = [tensor.dtype for tensor in host]
        chunks = -(-count // CHUNK)
        with torch.cuda.device(self._device):
            if (*kinds, subtract) not in self._compiled:
                with _COMPILING:
                    compile_for((kinds[0], kinds[1], kinds[2]), self._device, subtract=subtract)
                self._compiled.add((*kinds, subtract))
            sums = torch.empty(chunks, dtype=torch.float64, device=self._device)
            counts = torch.empty(2, chunks, dtype=torch.int32, device=self._device)
            for stream in self._streams:
                stream.wait_stream(torch.cuda.current_stream())  # it allocated the two tensors above
            for slot, begin, end in parts(count):
                with torch.cuda.stream(self._streams[slot]):
                    memory = zip(self._memory[slot], kinds, strict=True)
                    left, right, target = (place.view(kind)[: end - begin] for place, kind in memory)
                    left.copy_(host[0][begin:end], non_blocking=True)
                    right.copy_(host[1][begin:end], non_blocking=True)
                    here = slice(begin // CHUNK, -(-end // CHUNK))
                    launch(left, right, target, sums[here], counts[:, here], subtract=subtract)
                    host[2][begin:end].copy_(target, non_blocking=True)
            for stream in self._streams:
                stream.synchronize()
            overflowed, nonfinite = counts.long().sum(1).tolist()
            return sums.tolist(), overflowed, nonfinite
