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


def test_on_a_cpu_one_plan_of_each_number_of_rows_serves_all_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of one context each gave the same bits, but were made again and again in the middle of serving."""
    model = decoders.make(tiny.config(num_key_value_heads=2, max_position_embeddings=1024))
    state, made = StepState(model, new_cache(model, 256), 2), []
    ops = StepState.ops

    def recorded(self: StepState, max_context: int, rows: int | None = None) -> object:
        made.append((max_context, rows))
        return ops(self, max_context, rows)

    monkeypatch.setattr(StepState, "ops", recorded)
    with torch.inference_mode():
        for context in (256, 512, 1024):
            for rows in (1, 2):
                state.run(context, rows)
    assert made == [(1024, 1), (1024, 2)]


@pytest.mark.parametrize("backend", ["cpp-scalar", "torch"])
def test_on_a_cpu_the_bound_of_contexts_changes_no_bit(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels: tests/kernels/test_attention.py."""
    monkeypatch.setenv("BAIZE_BACKEND", backend)
    config = tiny.config(num_key_value_heads=2, max_position_embeddings=1024)
    decoder = decoders.Decoder(decoders.make(config, torch.float16), 512)
    found = []
    for bound in (256, 1024):
        state = StepState(decoder.model, decoder.cache, 2)
        with torch.inference_mode():
            for row, length in enumerate((150, 3)):
                sequence = decoder.sequence(length + 1)
                decoder.prefill(decoders.prompt(length), sequence)
                sequence.token_ids, sequence.max_tokens = [5], 9
                state.put(row, sequence)
            for op in decoder.model.ops.compile(state.ops(bound)):
                op()
        found.append(state.logits)
    assert torch.equal(*found)


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
        ("Stream", stream), ("current_stream", stream), ("stream", lambda given: nullcontext()),
        ("CUDAGraph", type("Graph", (), {})), ("graph", capture),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    with torch.inference_mode():
        state._capture(256, 1)
    assert asked == [state.ids.device]
