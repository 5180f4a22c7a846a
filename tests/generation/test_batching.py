"""What a sample says does not depend on its company: alone, in a batch, after a prefix hit, preempted; on every backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import decoders
import pytest
import tiny
import torch
from interpreter import Interpreter

from baize_engine import _C, Engine, SamplingParams
from baize_engine.generation.loop import Loop
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import PromptPiece

GROUPED = tiny.config(num_key_value_heads=2)
STEM = decoders.prompt(40, 99)
PROMPTS = [
    decoders.prompt(3, 1), [*STEM, 5, 6], decoders.prompt(17, 2), [*STEM, 7], STEM[:33], decoders.prompt(50, 3),
    [*STEM[:20], *decoders.prompt(30, 4)], decoders.prompt(1, 5),
]  # fmt: skip
GREEDY = SamplingParams(max_new_tokens=60, ignore_eos=True)
PARAMS = [
    GREEDY,
    SamplingParams(max_new_tokens=50, temperature=1.2, top_p=0.95, seed=3, ignore_eos=True),
    SamplingParams(max_new_tokens=40, temperature=0.9, top_k=20, seed=4, n=3),
    SamplingParams(max_new_tokens=20, temperature=1.0, seed=5, repetition_penalty=1.3),
    SamplingParams(max_new_tokens=12, logprobs=2),
    SamplingParams(max_new_tokens=1),
    SamplingParams(max_new_tokens=26, temperature=1.5, min_p=0.01, seed=6),
    SamplingParams(max_new_tokens=25, n=2, stop_token_ids=list(range(3, 24))),
]
BACKENDS = [
    *(f"cpp-{row.name}" for row in _C.implementations() if row.why_not() is None), "torch",
]  # fmt: skip


def made(dtype: torch.dtype = torch.float16, quantize: str | None = None) -> Llama:
    return decoders.make(GROUPED, dtype, quantize)


answers = partial(decoders.answers, chunk=32)  # several to a prompt


def engine_of(model: Llama, tokens: int = 4096) -> Engine:
    return decoders.Decoder(model, tokens, chunk=32).engine()


def alone(model: Llama) -> list[tuple[list[int], str]]:
    """Each prompt by itself, its samples one after another, in a cache that knows no other."""
    found = []
    for ids, params in zip(PROMPTS, PARAMS, strict=True):
        found += answers(model, [ids], [params], tokens=128)[0]
    return found


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Ops this small only wait for each other on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_do_not_depend_on_the_batch(
    backend: str, quantize: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAIZE_BACKEND", backend)
    model = made(quantize=quantize)
    wanted = alone(model)
    assert len({tuple(ids) for ids, _ in wanted}) == len(wanted) - 1  # the two greedy samples of one prompt
    together, kinds = answers(model, PROMPTS, PARAMS)
    assert together == wanted
    assert "SwapOut" not in kinds
    moved: list[str] = []
    for tokens in (128, 160, 256):  # barely room for one; for a few: samples make room for each other
        tight, kinds = answers(model, PROMPTS, PARAMS, tokens)
        assert tight == wanted
        moved += kinds
    assert moved.count("SwapOut") == moved.count("SwapIn") > 0


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each piece of a prompt that decoders run from now on."""
    lengths: list[int] = []
    run = decoders.Decoder.run

    def counted(decoder: decoders.Decoder, pieces: Sequence[PromptPiece]) -> None:
        lengths.extend(len(piece.ids) for piece in pieces)
        run(decoder, pieces)

    monkeypatch.setattr(decoders.Decoder, "run", counted)
    return lengths


@pytest.mark.parametrize("ahead", [False, True])
def test_a_prefix_hit_changes_no_bit(ahead: bool, computed: list[int]) -> None:
    """The same prompts again in one engine, whose cache knows them: fewer tokens are computed, all results are equal."""
    model = made()
    decoder = decoders.Decoder(model, 2048, ahead=ahead, chunk=32)
    engine = decoder.engine()
    params = SamplingParams(max_new_tokens=12, logprobs=3, ignore_eos=True, seed=0)
    first = engine.generate(PROMPTS, params)
    before, counted = len(computed), sum(computed)
    assert engine.generate(PROMPTS, params) == first
    assert counted < sum(len(ids) for ids in PROMPTS)  # the stem once already
    assert sum(computed[before:]) < counted
    assert all(length <= 16 for length in computed[before:])  # blocks: the CPU's ops share by them


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_logits_of_a_prompt_are_the_same_however_it_is_cut(quantize: str | None) -> None:
    """What sharing by blocks rests on: any row's bits, in any company of rows of its prompt."""
    model = decoders.make(tiny.config(num_key_value_heads=2, max_position_embeddings=1024), torch.float16, quantize)
    assert model.ops.batch_invariant
    ids = decoders.prompt(600, 7)
    found = []
    for cuts in ([600], [256, 512, 600], [1, 17, 18, 300, 599, 600], [*range(16, 600, 16), 600]):
        decoder = decoders.Decoder(model, 600)
        cache, sequence, begin = decoder.cache, decoder.sequence(), 0
        for end in cuts:
            logits = decoder.forward([ids[begin:end]], [sequence], prompt=True)
            begin = end
        rows = [part[:, sequence.block_table].flatten(1, 2)[:, :600] for part in (cache.keys, cache.values)]
        found.append((logits, *rows))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_samples_share_their_prompt(computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 samples the prompt is computed once; each is what it is alone."""
    model = made()
    ids = decoders.prompt(50, 3)
    one = SamplingParams(max_new_tokens=10, temperature=1.0, seed=9, n=20)
    together, _ = answers(model, [ids], [one])
    assert computed == [32, 18]
    monkeypatch.setattr(decoders, "Loop", partial(Loop, max_rows=1))
    assert answers(model, [ids], [one])[0] == together
    assert len({tuple(ids) for ids, _ in together}) == 20


@pytest.mark.parametrize("ahead", [False, True])
def test_the_host_may_run_ahead_of_a_batch_that_changes(ahead: bool) -> None:
    """Stops that only the host knows, rows that move to other places, steps in flight while prompts are computed."""
    model = made()
    many = [decoders.prompt(2 + n, n) for n in range(20)]
    params = [
        SamplingParams(max_new_tokens=5 + 3 * n % 17, temperature=1.0, seed=n, stop_token_ids=range(90, 70 + n, -1))
        for n in range(20)
    ]
    wanted = [answers(model, [ids], [one])[0][0] for ids, one in zip(many, params, strict=True)]
    for tokens in (96, 4096):
        assert answers(model, many, params, tokens, ahead=ahead)[0] == wanted
    assert {reason for _, reason in wanted} == {"stop", "length"}


def test_an_abandoned_batch_leaves_the_engine_usable() -> None:
    engine = engine_of(made(), 1024)
    wanted = engine.generate(PROMPTS[:3], GREEDY)
    run = engine.completions(PROMPTS, [SamplingParams(max_new_tokens=9, ignore_eos=True), *PARAMS[1:]])
    next(run)
    assert not decoders.all_free(engine)
    run.close()
    assert decoders.all_free(engine)
    assert [each.token_ids for each in engine.generate(PROMPTS[:3], GREEDY)] == [each.token_ids for each in wanted]


def test_calls_that_are_open_at_once_share_the_steps() -> None:
    engine = engine_of(made(), 2048)
    wanted = [each.token_ids for each in engine.generate(PROMPTS, GREEDY)]
    with decoders.actions() as alone:
        engine.generate(PROMPTS, GREEDY)
    with decoders.actions() as kinds:
        calls = [engine._checked.sequences(prompts, GREEDY) for prompts in (PROMPTS[:4], PROMPTS[4:])]
        for _ in zip(*(engine._serving.run(call) for call in calls), strict=True):
            pass
    assert kinds.count("Launch") <= alone.count("Launch") + 2
    assert [one.token_ids for call in calls for one in call] == wanted


# Scores: the same numbers alone, among others, after a prefix hit, and in a cache too small for all.

SCORED = [[*STEM, 5, 6, 7, 8], [*STEM, 7, 9], [*STEM[:33], 9, 3, 3], decoders.prompt(50, 3), decoders.prompt(2, 8)]


def scores(engine: Engine) -> list[object]:
    """Of all kinds, each asked for by itself."""
    found: list[object] = [engine.prompt_logprobs([ids], top=2) for ids in SCORED]
    found += [engine.score(STEM, [ids[len(STEM) :]]) for ids in SCORED[:2]]
    return [*found, *(engine.next_token_logprobs([ids], [5, 9, 60]) for ids in SCORED)]


def scores_together(engine: Engine) -> list[object]:
    """The same in one call of each kind, while a stream's answer is being made."""
    running = engine.completions(PROMPTS[:3], PARAMS[:3])
    next(running)
    found: list[object] = [[one] for one in engine.prompt_logprobs(SCORED, top=2)]
    next(running)
    found += [[one] for one in engine.score(STEM, [ids[len(STEM) :] for ids in SCORED[:2]])]
    found += [[one] for one in engine.next_token_logprobs(SCORED, [5, 9, 60])]
    assert len(list(running)) == 1
    return found


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_do_not_depend_on_the_batch(backend: str, quantize: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAIZE_BACKEND", backend)
    monkeypatch.setattr("baize_engine.model.prompt_runner.LOGIT_ROWS", 16)
    model = made(quantize=quantize)
    wanted: list[object] = []
    for number in range(len(scores(engine_of(model)))):
        wanted.append(scores(engine_of(model))[number])  # nothing was known of any prompt before
    engine = engine_of(model)
    assert scores(engine) == wanted
    assert scores(engine) == wanted  # all beginnings are known
    assert scores_together(engine_of(model)) == wanted
    for tokens in (128, 160):
        engine = engine_of(model, tokens)
        assert scores_together(engine) == wanted
        assert decoders.all_free(engine)


def test_a_shared_beginning_is_scored_once(computed: list[int]) -> None:
    """Of questions after the same examples; what is wanted from a position on shares what comes before."""
    model = made()
    decoder = decoders.Decoder(model, chunk=32)
    engine = decoder.engine()
    questions = [[*STEM, *decoders.prompt(9, n)] for n in range(6)]
    engine.next_token_logprobs(questions, [5, 9])
    assert sum(computed) == 49 + 5 * (49 - 32)  # blocks of 16: the CPU's ops share by them
    computed.clear()
    engine.score(STEM, [decoders.prompt(9, n) for n in range(6, 12)])
    assert sum(computed) == 6 * (48 - 32)
    computed.clear()
    engine.prompt_logprobs(questions[:2])
    assert sum(computed) == 2 * 48  # the logits of all positions are wanted


# Triton's kernels in the interpreter, float16 activations as on a GPU, int8 weights; the host runs ahead.


def test_the_triton_decoder_does_not_depend_on_the_batch(triton: Interpreter) -> None:
    prompts = [decoders.prompt(3, 1), [*STEM[:20], 5], [*STEM[:20], 6, 7]]
    params = [
        SamplingParams(max_new_tokens=5), SamplingParams(max_new_tokens=4, temperature=1.0, seed=3, top_p=0.9, n=2),
        SamplingParams(max_new_tokens=3, logprobs=1),
    ]  # fmt: skip
    settings = (GROUPED, torch.float16, "int8", 16)
    (together, _), _ = triton.run("decoders", "run_answers", *settings, prompts, params, 512, True)
    wanted = []
    for ids, one in zip(prompts, params, strict=True):
        (found, _), _ = triton.run("decoders", "run_answers", *settings, [ids], [one], 128, True)
        wanted += found
    assert together == wanted


def test_scores_of_the_triton_decoder_do_not_depend_on_the_batch(triton: Interpreter) -> None:
    prompts = [[*STEM[:36], 5, 6], [*STEM[:34], 7], decoders.prompt(5, 3)]
    settings = (GROUPED, torch.float16, "int8", 16)
    together, _ = triton.run("decoders", "run_scores", *settings, [prompts, prompts[:1]], 512)
    wanted = [triton.run("decoders", "run_scores", *settings, [[ids]], 512)[0][0][0] for ids in prompts]
    assert together == [wanted, wanted[:1]]
