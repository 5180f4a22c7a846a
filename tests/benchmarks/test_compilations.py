"""Kernels compiled and kernels from the cache, told apart by Triton's real compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import triton
import triton.language as tl
from compilations import Compilations
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def _double_kernel(values):
    tl.store(values, tl.load(values) * 2)


def test_what_is_compiled_and_what_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    told: list[bool] = []

    def listener(*, cache_hit: bool, **_: Any) -> None:
        told.append(cache_hit)

    monkeypatch.setattr(triton.knobs.compilation, "listener", listener)
    source = ASTSource(fn=_double_kernel, signature={"values": "*fp32"}, constexprs={})
    with Compilations() as found:
        for capability in (80, 90, 80):
            triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert (found.compiled, found.loaded) == (2, 1)
    assert str(found) == "2 of 3 compiled, the rest from the cache"
    assert found.seconds > 0
    assert told == [False, False, True]  # whoever listened before still does
    assert triton.knobs.compilation.listener is listener
    with Compilations() as again:
        triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert (again.compiled, again.loaded, again.seconds) == (0, 1, 0)
