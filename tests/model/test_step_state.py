"""The buffers of decode steps: where they lie, and where their graphs are captured."""

from __future__ import annotations

import decoders
import pytest
import tiny
import torch

from baize_engine.model.prompt_runner import new_cache
from baize_engine.model.step_state import StepState

GROUPED = tiny.config(num_key_value_heads=2)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 64])
def test_what_kernels_read_of_each_row_is_aligned(rows: int) -> None:
    """Where a pointer is a multiple of 16 bytes in one bucket of rows and not in another, each has kernels of its own."""
    model = decoders.make(GROUPED)
    state = StepState(model, new_cache(model, 256), rows)
    for name, value in vars(state).items():
        if isinstance(value, torch.Tensor):
            assert value.data_ptr() % 16 == 0, name


def test_a_graph_is_captured_on_a_stream_of_the_states_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own default is one stream for the process, on the device that captured first."""
    from contextlib import nullcontext
    from types import SimpleNamespace

    model = decoders.make(GROUPED)
    state = StepState(model, new_cache(model, 256), 1)
    asked: list[object] = []

    def stream(device: object) -> object:
        return SimpleNamespace(device=device, wait_stream=lambda other: None)

    def capture(graph: object, **options: object) -> object:
        asked.append(options["stream"].device)  # type: ignore[attr-defined]
        return nullcontext()

    for name, fake in (
        ("Stream", stream), ("current_stream", stream), ("stream", lambda given: nullcontext()), ("CUDAGraph", object),
        ("graph", capture),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    with torch.inference_mode():
        state._capture(256, 1)
    assert asked == [state.ids.device]
