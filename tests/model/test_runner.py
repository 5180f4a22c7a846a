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
from baize_engine.generation.block_pool import CacheFull
from baize_engine.generation.loop import Loop
from baize_engine.generation.sequence import Sequence
from baize_engine.loading import load
from baize_engine.model.prompt_runner import PromptRunner
from baize_engine.model.runner import Batch
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
    rows = [{"left": 12, "temperature": 1.3, "seed": 5, "index": n, "top_k": 30, "top_p": 0.95} for n in range(3)]
    together, _ = decoders.decode(model, prompts, rows)
    for number in range(3):
        alone, _ = decoders.decode(model, prompts[number : number + 1], rows[number : number + 1], ahead=True)
        assert alone[0] == together[number]
    assert len({tuple(ids[1:]) for ids in together}) == 3


def test_an_aborted_sequence_leaves_the_cache_usable() -> None:
    """Steps that were launched for it are still on their way."""
    loop = decoders.Decoder(decoders.make(GROUPED), 200, ahead=True).loop()
    prompt = decoders.prompt(5)
    sequence = decoders.asked(prompt, 50)
    loop.add([sequence])
    while len(sequence.token_ids) < 3:
        loop.step()
    assert sequence.num_cached == 5 + 2
    assert sequence.num_in_flight == 2
    loop.abort(sequence)
    assert loop.pool.free_blocks == loop.pool.num_blocks
    again = decoders.asked(prompt, 2)
    loop.add([again])
    decoders.finish(loop, [again])
    assert again.token_ids == sequence.token_ids


def test_a_full_cache_is_an_error_only_for_tokens_that_are_wanted() -> None:
    """The pool has room for 32 tokens: a row that ends at 32 runs, though the host looks ahead; one more cannot."""
    model = decoders.make(GROUPED)
    got, (free, total) = decoders.decode(model, [decoders.prompt(20)], [{"left": 12}], tokens=32, ahead=True)
    assert (len(got[0]), free, total) == (13, 2, 2)
    loop, sequence = decoders.Decoder(model, 32, ahead=True).loop(), decoders.asked(decoders.prompt(20), 13)
    loop.add([sequence])
    decoders.finish(loop, [sequence])
    assert isinstance(sequence.error, CacheFull)
    assert "raise cache_tokens" in str(sequence.error)
    assert sequence.token_ids == got[0]
    assert loop.pool.free_blocks == 2


@pytest.mark.parametrize("ahead", [False, True])
def test_logits_that_are_not_finite_are_the_error_of_their_sequence_alone(ahead: bool) -> None:
    """The embedding of one token is damaged: whoever makes it ends, with the place."""
    model = decoders.make(GROUPED)
    prompts = [decoders.prompt(5), decoders.prompt(9), decoders.prompt(17)]
    wanted = decoders.decode(model, prompts, [{"left": 12}] * 3)[0]
    bad = next(token for token in wanted[0][1:] if token not in wanted[1] + wanted[2])
    place = wanted[0].index(bad)
    model.weights["model.embed_tokens.weight"][bad] = float("nan")
    loop = decoders.Decoder(model, 512, ahead=ahead).loop()
    many = [decoders.asked(ids, 12) for ids in prompts]
    loop.add(many)
    decoders.finish(loop, many)
    assert str(many[0].error).startswith(f"sample 0, step {place + 1} (position {place + 6}): a logit is not finite")
    assert many[0].finish_reason == "error"
    assert [one.token_ids for one in many] == [wanted[0][: place + 1], *wanted[1:]]
    assert loop.pool.free_blocks == loop.pool.num_blocks


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
        assert seen[-1][1] == 3 + 25  # those that have ended are gone


def test_a_row_that_has_ended_keeps_its_context_until_it_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    run = StepState.run

    def recorded(self: StepState, max_context: int, rows: int) -> None:
        run(self, max_context, rows)
        seen.append((max_context, int(self.lens[:rows].max())))

    monkeypatch.setattr(StepState, "run", recorded)
    monkeypatch.setattr("baize_engine.model.step_state.FEWEST_TOKENS", 1)
    decoder = decoders.Decoder(decoders.make(GROUPED))
    batch: Batch[Sequence] = Batch(decoder.model, decoder.cache, 2)
    many = []
    for length, left in ((60, 2), (3, 25)):
        sequence = decoder.sequence(length + left + 1)
        sequence.token_ids = [int(decoder.prefill(decoders.prompt(length), sequence).argmax())]
        sequence.max_tokens = 1 + left
        batch.add(sequence)
        many.append(sequence)
    for _ in range(25):
        for sequence in many:
            sequence.num_in_flight += sequence.num_left > 0
        batch.launch()
        made = dict(batch.read())
        for sequence in many:
            if sequence.num_in_flight:
                sequence.token_ids.append(made[sequence])
                sequence.num_in_flight, sequence.num_cached = 0, sequence.num_cached + 1
    assert [len(one.token_ids) for one in many] == [3, 26]
    assert all(lens <= max_context for max_context, lens in seen)
    assert seen[-1] == (64, 62)


def test_a_sequence_may_come_while_others_run() -> None:
    model = decoders.make(GROUPED)
    prompts = [decoders.prompt(5, 1), decoders.prompt(9, 2)]
    wanted = [decoders.decode(model, [ids], [{"left": 8}])[0][0] for ids in prompts]
    loop = decoders.Decoder(model, 100, ahead=True).loop()
    many = [decoders.asked(ids, 8) for ids in prompts]
    loop.add(many[:1])
    while len(many[0].token_ids) < 4:
        loop.step()
    loop.add(many[1:])
    decoders.finish(loop, many)
    assert [one.token_ids for one in many] == wanted


def running(decoder: decoders.Decoder, length: int, left: int = 40) -> Sequence:
    """A sequence after its prompt and first token, with blocks for `left` tokens more."""
    sequence = decoder.sequence(length + left + 1)
    sequence.token_ids = [int(decoder.prefill(decoders.prompt(length, length), sequence).argmax())]
    sequence.max_tokens = 1 + left
    return sequence


def launched(batch: Batch[Sequence], steps: int = 1) -> None:
    """Steps, all launched before the first is read."""
    many = list(batch.sequences)
    for _ in range(steps):
        for sequence in many:
            sequence.num_in_flight += 1
        batch.launch()
    for _ in range(steps):
        for sequence, token in batch.read():
            sequence.token_ids.append(token)
            sequence.num_in_flight, sequence.num_cached = sequence.num_in_flight - 1, sequence.num_cached + 1


def verified(batch: Batch[Sequence], drafts: dict[Sequence, list[int]]) -> None:
    """A step with these drafts, and what agrees appended."""
    for row in batch.verify(drafts):
        for token, proposed in zip(row.tokens, [*row.draft, None], strict=True):
            row.sequence.token_ids.append(token)
            row.sequence.num_cached += 1
            if token != proposed:
                break


@pytest.mark.parametrize("backend", ["cpp-scalar", "torch"])
def test_steps_go_on_where_verification_has_left_the_sequences(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several steps ahead, right after a sequence came and another left; and what is verified goes on where steps have led."""
    monkeypatch.setenv("BAIZE_BACKEND", backend)
    decoder = decoders.Decoder(decoders.make(GROUPED), 1024)
    lengths = (3, 17, 30)
    wanted = []
    for length in lengths:
        plain: Batch[Sequence] = Batch(decoder.model, decoder.cache, 1)
        plain.add(alone := running(decoder, length))
        launched(plain, 40)
        wanted.append(alone.token_ids)
    batch: Batch[Sequence] = Batch(decoder.model, decoder.cache, 16)
    one, two, three = (running(decoder, length) for length in lengths)
    batch.add(one)
    batch.add(two)
    verified(batch, {one: wanted[0][1:4], two: [wanted[1][1], 5, 6]})
    assert (len(one.token_ids), len(two.token_ids)) == (5, 3)
    launched(batch, 3)
    verified(batch, {two: wanted[1][6:8]})
    batch.add(three)
    launched(batch, 2)
    verified(batch, {three: wanted[2][3:12]})
    batch.drop(one)  # the last row moves to its place
    launched(batch, 2)
    verified(batch, {two: [95] * 4, three: wanted[2][15:16]})
    verified(batch, {two: wanted[1][15:20]})
    launched(batch)
    found = [one.token_ids, two.token_ids, three.token_ids]
    assert [len(ids) for ids in found] == [12, 22, 19]
    assert found == [ids[: len(got)] for ids, got in zip(wanted, found, strict=True)]


def test_what_a_verification_step_says_of_each_sequence() -> None:
    decoder = decoders.Decoder(decoders.make(GROUPED), 512)
    batch: Batch[Sequence] = Batch(decoder.model, decoder.cache, 16)
    with pytest.raises(ValueError, match="no step has verified anything"):
        batch.verified_logits([0])
    many = [running(decoder, length) for length in (3, 5, 9)]
    for sequence in many:
        batch.add(sequence)
    rows = batch.verify({many[0]: [7, 8]})
    assert [row.sequence for row in rows] == many
    assert [(row.draft, len(row.tokens), row.first) for row in rows] == [([7, 8], 3, 0), ([], 1, 3), ([], 1, 4)]
    chosen = [token for row in rows for token in row.tokens]
    assert batch.verified_logits([0, 1, 2, 3, 4]).argmax(1).tolist() == chosen
    assert batch.verified_logits([4, 1]).argmax(1).tolist() == [chosen[4], chosen[1]]
    batch.reset()
    assert [row.row for row in many] == [-1] * 3
    with pytest.raises(ValueError, match="no step has verified anything"):
        batch.verified_logits([0])


def test_nothing_is_verified_while_steps_are_in_flight() -> None:
    """Their tokens come before the drafts."""
    decoder = decoders.Decoder(decoders.make(GROUPED), 512)
    batch: Batch[Sequence] = Batch(decoder.model, decoder.cache, 1, runs_ahead=True)
    batch.add(sequence := running(decoder, 3))
    for in_flight in (1, 2):
        sequence.num_in_flight = in_flight
        batch.launch()
        with pytest.raises(ValueError, match=f"{in_flight} steps are in flight, wanted none"):
            batch.verify({sequence: [7]})


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
    model = replace(decoders.make(cfg, torch.float32, quantize), exact_activations=True)
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
    model, cache = loaded.loop.decoder.model, loaded.loop.cache
    decoder = PromptRunner(model, cache, runs_ahead=ahead)
    engine = Engine(replace(loaded, loop=Loop(decoder)))
    assert engine.generate(ids, many) == wanted
    assert decoders.all_free(engine)
    assert {one.finish_reason for one in wanted} == {"stop", "length"}
