"""Tells which of Triton's kernels were compiled and which came from its cache on disk.

A time alone cannot tell them apart, because successive processes share the cache. Needs no GPU.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any


class Compilations:
    """Counts while it is entered. A kernel that this process already holds is neither compiled nor loaded."""

    def __init__(self) -> None:
        self.compiled = 0
        self.loaded = 0  # from the cache
        self.seconds = 0.0  # of compiling, by Triton's own account
        self._before: Any = None

    def __enter__(self) -> Compilations:
        from triton import knobs  # here, for a machine without Triton that profiles its CPU

        self._knobs = knobs.compilation
        self._before, self._knobs.listener = self._knobs.listener, self._listen
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._knobs.listener = self._before

    def __str__(self) -> str:
        return f"{self.compiled} of {self.compiled + self.loaded} compiled, the rest from the cache"

    def _listen(self, *, times: Any, cache_hit: bool, **more: Any) -> None:
        if cache_hit:
            self.loaded += 1
        else:
            self.compiled += 1
            self.seconds += times.total / 1e6
        if self._before:
            self._before(times=times, cache_hit=cache_hit, **more)
