"""What becomes of graphs that are still there at the end."""

from __future__ import annotations

import gc

import pytest

from baize_engine.model import graphs


class FakeGraph:
    """A graph as a GPU has it."""

    held = 0

    def __init__(self) -> None:
        FakeGraph.held += 1

    def reset(self) -> None:
        FakeGraph.held -= 1


class Entered:
    """torch.cuda.graph, or a stream."""

    def __init__(self, *arguments: object, **named: object) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


def test_release_frees_what_graphs_hold_that_are_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, fake in (("CUDAGraph", FakeGraph), ("graph", Entered), ("Stream", Entered)):
        monkeypatch.setattr(graphs.torch.cuda, name, fake)
    ran: list[int] = []
    kept, gone = (graphs.capture([lambda: ran.append(1)]) for _ in range(2))
    gone.reset()
    del gone
    gc.collect()
    assert (FakeGraph.held, len(ran)) == (1, 2)
    graphs.release()
    graphs.release()
    assert FakeGraph.held == 0
    del kept
