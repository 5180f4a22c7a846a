"""The buffers of verification steps: rows with the bits of decode steps, writes where they belong, graphs captured once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace

import decoders
import pytest
import tiny
import torch
from implementations import IMPLEMENTATIONS

from baize_engine import SamplingParams
from baize_engine.generation.sequence import Sequence as Sample
from baize_engine.model import graphs
from baize_engine.model.buffers import cache_slots
from baize_engine.model.prompt_runner import new_cache
from baize_engine.model.step_state import StepState
from baize_engine.model.verify_state import VerifyState

GROUPED = tiny.config(num_key_value_heads=2)
LONG = tiny.config(num_key_value_heads=2, max_position_embeddings=1024)
KINDS = {
    "float32": (torch.float32, None), "float16": (torch.float16, None), "bfloat16": (torch.bfloat16, None),
    "int8": (torch.float16, "int8"), "int4": (torch.float16, "int4"),
}  # fmt: skip
HEAT = SamplingParams(temperature=1.0, top_p=0.95)


def waiting(decoder: decoders.Decoder, length: int, params: SamplingParams = HEAT, room: int = 40) -> Sample:
    """A sequence after its prompt, with its first token and blocks for `room` more."""
    sequence = Sample(decoders.prompt(length, length), params, 100, seed=2**62 + length, index=length % 3)
    decoder._own.add(sequence)
    decoder.prefill(sequence.prompt_ids, sequence)
    decoder.pool.reserve(sequence, room)
    sequence.token_ids = [5]
    return sequence


def stepped(decoder: decoders.Decoder, sequence: Sample, steps: int) -> tuple[list[int], torch.Tensor]:
    """What decode steps choose after the sequence's last token, and their logits (steps, V). The sequence stays as it was."""
    state = StepState(decoder.model, decoder.cache, 1)
    tokens, rows = [], []
    with torch.inference_mode():
        state.put(0, sequence)
        for _ in range(steps):
            state.run(decoder.model.config.max_position_embeddings, 1)
            tokens.append(int(state.tokens[0]))
            rows.append(state.logits[0].clone())
    return tokens, torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", [*IMPLEMENTATIONS, "torch"])
def test_rows_have_the_bits_of_decode_steps(backend: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside others, over the boundaries of blocks, after drafts that were wrong; also where a draft goes wrong."""
    monkeypatch.setenv("BAIZE_BACKEND", backend if backend == "torch" else f"cpp-{backend}")
    decoder = decoders.Decoder(decoders.make(GROUPED, *KINDS[kind]), 1024)
    state = VerifyState(decoder.model, decoder.cache, 64)
    beside, alone = waiting(decoder, 9), waiting(decoder, 20)
    for length in (1, 14, 62):
        sequence = waiting(decoder, length)
        tokens, logits = stepped(decoder, sequence, 24)
        for right, wrong, before, after in ((1, 0, 0, 0), (3, 2, 1, 0), (0, 5, 3, 2), (23, 0, 9, 0), (20, 3, 16, 20)):
            draft = tokens[:right] + [11] * wrong
            chosen = state.run([beside, sequence, alone], [[9] * before, draft, [8] * after]).tolist()
            rows = slice(1 + before, 2 + before + right)
            assert chosen[rows] == tokens[: right + 1]
            assert torch.equal(state.logits[rows], logits[: right + 1])
            assert len(chosen) == 3 + before + right + wrong + after


@pytest.mark.parametrize("backend", ["cpp-scalar", "torch"])
def test_each_row_is_sampled_as_its_sequence_asks(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAIZE_BACKEND", backend)
    decoder = decoders.Decoder(decoders.make(GROUPED), 1024)
    state = VerifyState(decoder.model, decoder.cache, 64)
    asked = [
        SamplingParams(), SamplingParams(temperature=1.0), SamplingParams(temperature=2.0, top_k=3),
        SamplingParams(temperature=2.0, top_p=0.2), SamplingParams(temperature=2.0, min_p=0.6),
    ]  # fmt: skip
    many = [waiting(decoder, 9 + n, params) for n, params in enumerate(asked)]
    found = [stepped(decoder, sequence, 12)[0] for sequence in many]
    for sequence, params in zip(many, asked, strict=True):  # each changes what is drawn
        sequence.params = SamplingParams(temperature=params.temperature)
        plain = stepped(decoder, sequence, 12)[0]
        assert (plain == found[many.index(sequence)]) == (params in asked[:2])
        sequence.params = params
    chosen = state.run(many, [tokens[:-1] for tokens in found]).tolist()
    assert chosen == [token for tokens in found for token in tokens]


@pytest.mark.parametrize("backend", [*IMPLEMENTATIONS, "torch"])
def test_a_row_does_not_see_the_rows_after_it(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if their keys and values are not finite; nor do decode steps that come after them."""
    monkeypatch.setenv("BAIZE_BACKEND", backend if backend == "torch" else f"cpp-{backend}")
    decoder = decoders.Decoder(decoders.make(GROUPED, torch.float16), 256)
    sequence = waiting(decoder, 10)
    tokens, logits = stepped(decoder, sequence, 8)
    bad = next(token for token in range(3, 96) if token not in tokens)
    decoder.model.weights["model.embed_tokens.weight"][bad] = float("nan")
    state = VerifyState(decoder.model, decoder.cache, 16)
    assert state.run([sequence], [[*tokens[:3], bad, bad, *tokens[5:8]]])[:4].tolist() == tokens[:4]
    assert torch.equal(state.logits[:4], logits[:4])
    assert stepped(decoder, sequence, 3)[0] == tokens[:3]


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 64])
def test_what_kernels_read_of_each_row_is_aligned(rows: int) -> None:
    """As of decode steps: tests/model/test_step_state.py."""
    model = decoders.make(GROUPED)
    state = VerifyState(model, new_cache(model, 256), rows)
    lines = [line for name in ("_wide", "_sampling", "_lens") for line in getattr(state, name)]
    assert len(lines) == 12
    for line in (*lines, state.logits, state._tables, state._tokens, state._best):
        assert line.data_ptr() % 16 == 0


def test_a_step_without_draft_tokens_is_refused() -> None:
    decoder = decoders.Decoder(decoders.make(GROUPED))
    state = VerifyState(decoder.model, decoder.cache, 4)
    with pytest.raises(ValueError, match="no sequence has draft tokens, wanted a decode step"):
        state.run([waiting(decoder, 3), waiting(decoder, 4)], [[], []])


def test_a_step_of_more_rows_than_there_are_is_refused() -> None:
    decoder = decoders.Decoder(decoders.make(GROUPED))
    state, many = VerifyState(decoder.model, decoder.cache, 4), [waiting(decoder, 3), waiting(decoder, 4)]
    assert len(state.run(many, [[7], [8]])) == 4
    with pytest.raises(ValueError, match="sequences and draft tokens are 5 rows, wanted at most 4"):
        state.run(many, [[7], [8, 9]])


class OnGpu:
    """A tensor that says that it is on a GPU."""

    device = torch.device("cuda", 0)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __getitem__(self, place: object) -> torch.Tensor:
        return self.tensor[place]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a GPU that is not here was told. Its graphs compute when they are replayed, on the CPU, with the reference ops."""
    told: list[str] = []

    def run(plan: Sequence[Callable[[], object]], name: str) -> None:
        told.append(name)
        for op in plan:
            op()

    def capture(plan: Sequence[Callable[[], object]], device: torch.device) -> object:
        told.append(f"capture on {device}")
        return SimpleNamespace(replay=lambda: run(plan, "replay"))

    monkeypatch.setenv("BAIZE_BACKEND", "torch")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(graphs, "run_aside", lambda plan, device: run(plan, f"aside on {device}"))
    monkeypatch.setattr(graphs, "capture", capture)
    return told


def on_gpu(decoder: decoders.Decoder, rows: int) -> VerifyState:
    state = VerifyState(decoder.model, decoder.cache, rows)
    state.logits = OnGpu(state.logits)  # type: ignore[assignment]
    return state


FIRST = ["aside on cuda:0", "capture on cuda:0", "replay"]


def test_a_graph_is_captured_once_for_rows_and_contexts_rounded_up(events: list[str]) -> None:
    """Its first use, which finds padding in its buffers, has the right inputs already."""
    decoder = decoders.Decoder(decoders.make(LONG), 1024)
    state = on_gpu(decoder, 12)
    short, long = waiting(decoder, 20), waiting(decoder, 250)
    for sequence, drafts, told in (
        (short, 1, FIRST),  # 2 rows
        (short, 2, FIRST),  # 3 rows of 4
        (short, 3, ["replay"]),
        (short, 4, FIRST),  # 5 rows of 8
        (short, 1, ["replay"]),
        (short, 8, FIRST),  # 9 rows of 12, all there are
        (short, 11, ["replay"]),
        (long, 5, ["replay"]),  # a context of 256
        (long, 6, FIRST),  # of 257
        (short, 7, ["replay"]),
        (long, 7, ["replay"]),
    ):
        tokens, logits = stepped(decoder, sequence, drafts + 1)
        events.clear()
        assert state.run([sequence], [tokens[:drafts]]).tolist() == tokens
        assert torch.equal(state.logits[: drafts + 1], logits)
        assert events == told


def test_graphs_serve_any_sequences(events: list[str]) -> None:
    """Which sequence a row belongs to, and how it is sampled, are inputs."""
    decoder = decoders.Decoder(decoders.make(LONG), 1024)
    state = on_gpu(decoder, 8)
    many = [waiting(decoder, 9), waiting(decoder, 30, SamplingParams()), waiting(decoder, 17)]
    found = [stepped(decoder, sequence, 8) for sequence in many]
    for count, drafts in (((5, 0, 0), 1), ((0, 2, 3), 0), ((1, 1, 1), 0), ((0, 5, 0), 0)):
        events.clear()
        proposed = [tokens[:n] for (tokens, _), n in zip(found, count, strict=True)]
        wanted = [token for (tokens, _), n in zip(found, count, strict=True) for token in tokens[: n + 1]]
        assert state.run(many, proposed).tolist() == wanted
        assert torch.equal(
            state.logits[: len(wanted)], torch.cat([rows[: n + 1] for (_, rows), n in zip(found, count, strict=True)])
        )
        assert events == (FIRST if drafts else ["replay"])


def written(decoder: decoders.Decoder, before: list[torch.Tensor]) -> list[set[int]]:
    """The slots of the cache's keys and of its values that have changed since."""
    return [
        set((now != then).flatten(1, 2).flatten(2).any(2).any(0).nonzero().flatten().tolist())
        for now, then in zip((decoder.cache.keys, decoder.cache.values), before, strict=True)
    ]


def copied(decoder: decoders.Decoder) -> list[torch.Tensor]:
    return [decoder.cache.keys.clone(), decoder.cache.values.clone()]


def test_padding_rows_write_to_the_scrap_block(events: list[str]) -> None:
    """Those of the first run, and those that round a step of 5 rows up."""
    decoder = decoders.Decoder(decoders.make(LONG), 256)
    state, many = on_gpu(decoder, 64), [waiting(decoder, 9), waiting(decoder, 14)]
    own = {
        slot
        for one, end in zip(many, (11, 18), strict=True)
        for slot in cache_slots(one.block_table, 16, one.num_cached, end)
    }
    before = copied(decoder)
    state.run(many, [[7], [7, 8, 9]])
    assert events == FIRST
    scrap = decoder.cache.scrap_block * 16
    assert written(decoder, before) == [own | {scrap}] * 2


@pytest.mark.parametrize("backend", [*IMPLEMENTATIONS, "torch"])
def test_a_step_writes_the_rows_of_its_tokens_alone(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAIZE_BACKEND", backend if backend == "torch" else f"cpp-{backend}")
    decoder = decoders.Decoder(decoders.make(GROUPED), 256)
    state, many = VerifyState(decoder.model, decoder.cache, 64), [waiting(decoder, 9), waiting(decoder, 14)]
    own = {
        slot
        for one, end in zip(many, (10, 18), strict=True)
        for slot in cache_slots(one.block_table, 16, one.num_cached, end)
    }
    before = copied(decoder)
    state.run(many, [[], [7, 8, 9]])
    assert written(decoder, before) == [own] * 2
