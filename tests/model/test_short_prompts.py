"""Short pieces of prompts, padded to a bucket of rows: the bits of the piece by itself, and nothing else written."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import decoders
import pytest
import tiny
import torch
from interpreter import Interpreter
from short_prompt_runs import CONFIG, both_ways

from baize_engine.backend.choose import reference_ops
from baize_engine.model import graphs, short_prompts
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import PromptRunner

LENGTHS = (2, 3, 7, 8, 9, 16, 31, 33, 63, 64)


@pytest.mark.parametrize("count", LENGTHS)
@pytest.mark.parametrize("before", [0, 5, 40])
def test_the_bits_are_those_of_the_piece_by_itself(before: int, count: int) -> None:
    """With this machine's kernels, whose rows do not depend on each other, as those of a GPU."""
    one, other = both_ways(decoders.make(CONFIG), before, count)
    for mine, wanted in zip(one, other, strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("kind", [None, "int8", "int4"])
def test_the_gpus_kernels_give_the_bits_of_the_piece_by_itself(triton: Interpreter, kind: str | None) -> None:
    assert triton.run("short_prompt_runs", "equal_bits", kind)[0]


def test_single_tokens_and_long_pieces_go_op_by_op(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoders.Decoder(decoders.make(tiny.config(max_position_embeddings=256)), 512, ahead=True)
    sizes: list[int] = []
    run = short_prompts.ShortPrompts.run

    def counted(self: short_prompts.ShortPrompts, ids: list[int], sequence: object) -> torch.Tensor:
        sizes.append(len(ids))
        return run(self, ids, sequence)  # type: ignore[arg-type]

    monkeypatch.setattr(short_prompts.ShortPrompts, "run", counted)
    for count in (1, 2, 64, 65):
        decoder.prefill(decoders.prompt(count), decoder.sequence())
    assert sizes == [2, 64]


def test_a_sequence_without_blocks_stays_as_it_was() -> None:
    decoder = decoders.Decoder(decoders.make(CONFIG), 32, ahead=True)
    sequence = decoder.sequence()
    with pytest.raises(ValueError, match="would have 40 tokens, wanted at most 0, for which its blocks have room"):
        PromptRunner.prefill(decoder, decoders.prompt(40), sequence)
    assert (sequence.num_cached, decoder.pool.free_blocks) == (0, 2)


def test_a_prompt_beyond_the_positions_is_refused() -> None:
    decoder = decoders.Decoder(decoders.make(tiny.config(max_position_embeddings=48)), 128, ahead=True)
    sequence = decoder.sequence()
    with pytest.raises(
        ValueError, match=r"a sequence would have 50 tokens, wanted at most 48 \(max_position_embeddings\)"
    ):
        decoder.prefill(decoders.prompt(50), sequence)
    assert sequence.num_cached == 0
    assert decoder.prefill(decoders.prompt(48), sequence).shape == (1, 96)


def test_another_cache_gets_buffers_of_its_own() -> None:
    model, logits = decoders.make(CONFIG), []
    for _ in range(2):
        decoder = decoders.Decoder(model, 128, ahead=True)
        logits.append(decoder.prefill(decoders.prompt(12), decoder.sequence()))
    assert torch.equal(*logits)


@pytest.mark.parametrize("positions", [40, 128])
def test_a_graph_is_made_for_each_bucket_once(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with graphs that run their plan: the first run, which compiles, touches nobody's blocks; it is of a whole
    bucket, also where that is more than the model's positions."""
    made = decoders.make(tiny.config(num_key_value_heads=2, max_position_embeddings=positions))
    model = Llama(made.config, made.weights, reference_ops("cpu"))
    decoder = decoders.Decoder(model, 256, ahead=False)
    cache, captured = decoder.cache, list[int]()

    def run(plan: list, device: object = None) -> None:
        for op in plan:
            op()

    def capture(plan: list, device: object) -> SimpleNamespace:
        captured.append(plan[0].keywords["ids"].shape[0])
        return SimpleNamespace(replay=lambda: run(plan))

    def aside(plan: list, device: object) -> None:
        before = cache.keys[:, : cache.num_blocks].clone()
        run(plan)
        assert torch.equal(before, cache.keys[:, : cache.num_blocks])

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "run_aside", aside)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    with torch.inference_mode():
        short = short_prompts.ShortPrompts(model, cache)
        short._device = SimpleNamespace(type="cuda")  # type: ignore[assignment]
        for count in (5, 8, 12, 3, 16, 40):
            ids, sequence = decoders.prompt(count, count), decoder.sequence(count)
            got = short.run(ids, sequence)
            other = decoder.sequence()
            wanted = decoder.forward([ids], [other], prompt=True)
            assert (got - wanted).abs().max() < 1e-4
            decoder.pool.free(sequence)
            decoder.pool.free(other)
    assert captured == [8, 16, 64]
