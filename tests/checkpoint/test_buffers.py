"""Memory that disks read into: aligned, zeroed, and not to be found by a forked child."""

from __future__ import annotations

import ctypes
import os
import sys

import pytest

from baize_engine.checkpoint import buffers
from baize_engine.checkpoint.buffers import HUGE, PAGE, aligned_buffer


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


@pytest.mark.parametrize("huge", [True, False])
@pytest.mark.parametrize("nbytes", [0, 1, PAGE - 1, PAGE, HUGE - 1, HUGE, 2 * HUGE + 5])
def test_buffers_are_aligned_and_zeroed(monkeypatch: pytest.MonkeyPatch, nbytes: int, huge: bool) -> None:
    monkeypatch.setattr(buffers, "huge_pages", lambda: huge)
    buffer = aligned_buffer(nbytes)
    assert len(buffer) == nbytes
    assert not buffer.readonly
    if nbytes:
        assert address(buffer) % (HUGE if huge and nbytes >= HUGE else PAGE) == 0
        assert bytes(buffer[:100]) == bytes(min(100, nbytes))
        buffer[-1] = 7
        assert buffer[nbytes - 1] == 7


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MADV_WIPEONFORK is Linux's")
def test_a_forked_child_finds_zeros() -> None:
    buffer = aligned_buffer(2 * PAGE)
    buffer[:] = b"x" * len(buffer)
    child = os.fork()
    if child == 0:
        os._exit(0 if bytes(buffer) == bytes(len(buffer)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bytes(buffer) == b"x" * len(buffer)
