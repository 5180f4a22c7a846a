"""Decode steps whose state lives on the device: the tokens of the host's loop, with the reference ops and with Triton's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import decoders
import pytest
import tiny
import torch
from interpreter import Interpreter
from tolerances import GREEDY_MARGIN

from baize_engine import Engine, SamplingParams
from baize_engine.errors import BaizeError
from baize_engine.loading import load
from baize_engine.model.kv_cache import CacheFull
from baize_engine.model.prompt_runner import PromptRunner
from baize_engine.model.runner import DecodeSteps, Row
from baize_engine.model.step_state import MAX_STOPS, StepState
from baize_engine.options import EngineOptions

GROUPED = tiny.config(num_key_value_heads=2)


def test_the_tokens_of_the_hosts_loop() -> None:
    """Over block boundaries, rows of different lengths that end at different steps."""
    model = decoders.make(GROUPED)
    prompts = [decoders.prompt(n, n) for n in (3, 17, 40, 15)]
    lefts = [30, 5, 1, 20]
    wanted = [decoders.greedy_logits(model, ids, left + 1)[0] for ids, left in zip(prompts, lefts, strict=True)]
    for ahead in (False, True):
        got, (free, total) = decoders.decode(model, prompts, [{"left": left} for left in lefts], ahead=ahead)
        assert got == wanted
        assert free == total


def test_a_stop_id_ends_its_row_alone() -> None:
    model = decoders.make(GROUPED)
    prompts = [decoders.prompt(n, n) for n in (3, 17)]
    plain, _ = decoders.decode(model, prompts, [{"left": 20}] * 2)
    stop = plain[0][4]
    first = plain[0].index(stop)
    assert first > 0
    got, _ = decoders.decode(model, prompts, [{"left": 20, "stop_ids": (1000, stop)}, {"left": 20}], ahead=True)
    assert got[0] == plain[0][: first + 1]
    assert got[1] == plain[1]


def test_sampled_rows_do_not_depend_on_each_other() -> None:
    model = decoders.make(GROUPED)
    prompts = [decoders.prompt(n, n) for n in (3, 9, 17)]
    rows = [
        {"left": 12, "temperature": 1.3, "seed": 5, "sample_index": n, "top_k": 30, "top_p": 0.95} for n in range(3)
    ]
    together, _ = decoders.decode(model, prompts, rows)
    for number in range(3):
        alone, _ = decoders.decode(model, prompts[number : number + 1], rows[number : number + 1], ahead=True)
        assert alone[0] == together[number]
    assert len({tuple(ids[1:]) for ids in together}) == 3


def test_an_abandoned_run_leaves_the_cache_usable() -> None:
    decoder = decoders.Decoder(decoders.make(GROUPED), 200, ahead=True)
    cache, steps, sequence = decoder.cache, decoder.steps(), decoder.sequence()
    token = int(decoder.prefill(decoders.prompt(5), sequence).argmax())
    run = steps.run([Row(sequence, token, 50)])
    seen = [next(run)[0], next(run)[0]]
    run.close()
    assert sequence.length == 5 + 2
    cache.free(sequence)
    assert cache.free_blocks == cache.num_blocks
    again = cache.allocate()
    assert int(decoder.prefill(decoders.prompt(5), again).argmax()) == token
    assert [tokens[0] for tokens in steps.run([Row(again, token, 2)])] == seen


def test_a_full_cache_is_raised_only_for_tokens_that_are_wanted() -> None:
    """The pool has room for 32 tokens: a row that ends at 32 runs, though the host looks ahead; one more raises."""
    model = decoders.make(GROUPED)
    got, (free, total) = decoders.decode(model, [decoders.prompt(20)], [{"left": 12}], tokens=32, ahead=True)
    assert (len(got[0]), free, total) == (13, 2, 2)
    decoder = decoders.Decoder(model, 32, ahead=True)
    sequence = decoder.sequence()
    token = int(decoder.prefill(decoders.prompt(20), sequence).argmax())
    seen = []
    with pytest.raises(CacheFull, match="raise cache_tokens"):
        for tokens in decoder.steps().run([Row(sequence, token, 13)]):
            seen += tokens
    assert [token, *seen] == got[0]


def test_a_logit_that_is_not_finite_is_raised_with_its_place() -> None:
    model = decoders.make(GROUPED)
    decoder = decoders.Decoder(model, 64)
    sequence = decoder.sequence()
    token = int(decoder.prefill(decoders.prompt(5), sequence).argmax())
    model.weights["model.layers.1.mlp.down_proj.weight"][3, 4] = float("nan")
    with pytest.raises(BaizeError, match=r"step 1 \(position 6\) of row 0: a logit is not finite"):
        list(decoder.steps().run([Row(sequence, token, 5)]))


def test_more_stop_ids_than_the_device_takes() -> None:
    model = decoders.make(GROUPED)
    plain, _ = decoders.decode(model, [decoders.prompt(3)], [{"left": 20}])
    stop = plain[0][4]
    stops = (*range(1000, 1000 + MAX_STOPS), stop)
    got, (free, total) = decoders.decode(model, [decoders.prompt(3)], [{"left": 20, "stop_ids": stops}], ahead=True)
    assert got[0] == plain[0][: plain[0].index(stop) + 1]
    assert free == total


@pytest.mark.parametrize("ahead", [False, True])
def test_no_row_attends_to_more_than_a_step_is_launched_for(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that has ended keeps its context: by its count, by a stop id, and by one of those that only the host knows."""
    seen: list[tuple[int, int]] = []
    run = StepState.run

    def recorded(self: StepState, max_context: int, rows: int) -> None:
        run(self, max_context, rows)
        seen.append((max_context, int(self.lens[:rows].max())))

    model = decoders.make(GROUPED)
    stop = decoders.decode(model, [decoders.prompt(60)], [{"left": 20}])[0][0][3]
    monkeypatch.setattr(StepState, "run", recorded)
    monkeypatch.setattr("baize_engine.model.step_state.FEWEST_TOKENS", 1)
    late = (*range(1000, 1000 + MAX_STOPS), stop)
    for row in ({"left": 2}, {"left": 30, "stop_ids": (stop,)}, {"left": 30, "stop_ids": late}):
        seen.clear()
        decoders.decode(model, [decoders.prompt(60), decoders.prompt(3)], [row, {"left": 25}], ahead=ahead)
        assert len(seen) >= 25
        assert all(lens <= max_context for max_context, lens in seen), row
        assert seen[-1][1] > 60  # it is the ended row's context that the last step is launched for


def test_two_runs_may_be_open_at_once() -> None:
    model = decoders.make(GROUPED)
    prompts = [decoders.prompt(5, 1), decoders.prompt(9, 2)]
    wanted = [decoders.decode(model, [ids], [{"left": 8}])[0][0] for ids in prompts]
    decoder = decoders.Decoder(model, 100, ahead=True)
    steps, sequences = decoder.steps(), [decoder.sequence() for _ in prompts]
    firsts = [int(decoder.prefill(ids, s).argmax()) for ids, s in zip(prompts, sequences, strict=True)]
    runs = [steps.run([Row(s, first, 8)]) for s, first in zip(sequences, firsts, strict=True)]
    made = list(zip(*runs, strict=True))
    for number in range(2):
        assert [firsts[number], *(both[number][0] for both in made)] == wanted[number]


# Triton's kernels in the interpreter, the activations in the weights' type as on a GPU.

VARIANTS = {
    "multi-head": {}, "grouped": {"num_key_value_heads": 2}, "multi-query, odd sizes": {"num_key_value_heads": 1,
    "intermediate_size": 76, "vocab_size": 101}, "own head_dim": {"head_dim": 16}, "tied": {"tie_word_embeddings": True},
}  # fmt: skip


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_ids_of_the_triton_decoder_are_the_cpus(triton: Interpreter, variant: str, quantize: str | None) -> None:
    """float32 activations on both sides: ids must agree, but where the two best logits are close."""
    cfg = tiny.config(**VARIANTS[variant])
    (ids, logits), _ = triton.run("decoders", "run_greedy", cfg, torch.float32, quantize, 21, 6)
    model = decoders.make(cfg, torch.float32, quantize)
    prompt = decoders.prompt(21)
    decoder = decoders.Decoder(model, 64)
    oracle = decoder.forward([prompt + ids[:-1]], [decoder.sequence()], all_logits=True)[20:]
    assert (logits - oracle).abs().max() < 1e-3
    for step, row in enumerate(oracle):
        best, second = row.topk(2).values
        assert ids[step] == int(row.argmax()) or best - second < GREEDY_MARGIN


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_activations_stay_near_the_cpus(
    triton: Interpreter, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits within twice the error of the plain-torch ops in the same type, both against float32 activations."""
    (ids, logits), _ = triton.run("decoders", "run_greedy", GROUPED, dtype, None, 21, 4)
    whole = decoders.prompt(21) + ids[:-1]
    monkeypatch.setenv("BAIZE_BACKEND", "torch")
    exact, plain = decoders.make(GROUPED, dtype), decoders.make(GROUPED, dtype, joined=True)
    rows = []
    for model in (exact, plain):
        decoder = decoders.Decoder(model, 64)
        rows.append(decoder.forward([whole], [decoder.sequence()], all_logits=True)[20:])
    step = torch.finfo(dtype).eps * float(rows[0].abs().max())
    assert (logits - rows[0]).abs().max() <= 2 * (rows[1] - rows[0]).abs().max() + step


def test_the_triton_decoder_does_not_depend_on_the_batch(triton: Interpreter) -> None:
    """Greedy and sampled rows, alone and together, with int8 weights and float16 activations: the same tokens."""
    lengths = [3, 17, 30]
    rows = [{"left": 6}, {"left": 4, "temperature": 1.0, "seed": 3, "top_p": 0.9}, {"left": 5}]
    together, _ = triton.run("decoders", "run_decode", GROUPED, torch.float16, "int8", lengths, rows)
    for number in range(3):
        one = slice(number, number + 1)
        alone, _ = triton.run("decoders", "run_decode", GROUPED, torch.float16, "int8", lengths[one], rows[one])
        assert alone[0] == together[number]


@pytest.mark.parametrize("ahead", [False, True])
def test_an_engine_on_device_steps_gives_the_same_completions(tmp_path: Path, ahead: bool) -> None:
    """Greedy, sampled, n samples, stop ids, a length limit; log-probabilities and penalties take the host's way."""
    cfg = tiny.config(num_key_value_heads=2)
    folder = tiny.write_model(tmp_path / "m", cfg, tiny.state(cfg, 0, torch.float16, scale=0.2))
    many = [
        SamplingParams(max_new_tokens=12, ignore_eos=True, seed=0),
        SamplingParams(max_new_tokens=1, seed=0),
        SamplingParams(max_new_tokens=20, temperature=1.2, top_p=0.9, seed=7, n=2),
        SamplingParams(max_new_tokens=200, temperature=1.0, seed=3, stop_token_ids=[11, 12, 13, 14, 15, 16]),
        SamplingParams(max_new_tokens=6, logprobs=2, seed=0),
        SamplingParams(max_new_tokens=6, repetition_penalty=1.3, seed=0),
    ]
    ids = [decoders.prompt(9)] * len(many)
    loaded = replace(load(folder, EngineOptions(device="cpu")), eos_token_ids=(2,), tokenizer=None)
    wanted = Engine(loaded).generate(ids, many)
    model, cache = loaded.decoder.model, loaded.cache
    decoder, steps = PromptRunner(model, cache, runs_ahead=ahead), DecodeSteps(model, cache, runs_ahead=ahead)
    engine = Engine(replace(loaded, decoder=decoder, steps=steps))
    assert engine.generate(ids, many) == wanted
    assert loaded.cache.free_blocks == loaded.cache.num_blocks
    assert {one.finish_reason for one in wanted} == {"stop", "length"}
