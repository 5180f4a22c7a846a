"""What a sample says does not depend on its company: alone, in a batch, after a prefix hit, preempted; on every backend."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import decoders
import pytest
import tiny
import torch
from interpreter import Interpreter

from baize_engine import _C, SamplingParams
from baize_engine.model.llama import Llama
from baize_engine.text.options import AS_FILES_SAY

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
    *(f"cpp-{name}" for name in _C.decoder_variants() if _C.decoder_why_not(name) is None), "torch",
]  # fmt: skip


def made(dtype: torch.dtype = torch.float16, quantize: str | None = None) -> Llama:
    return decoders.make(GROUPED, dtype, quantize)


answers = partial(decoders.answers, chunk=32)  # several to a prompt


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
    assert "TakeOut" not in kinds
    moved: list[str] = []
    for tokens in (128, 160, 256):  # barely room for one; for a few: samples make room for each other
        tight, kinds = answers(model, PROMPTS, PARAMS, tokens)
        assert tight == wanted
        moved += kinds
    assert moved.count("TakeOut") == moved.count("PutBack") > 0


@pytest.mark.parametrize("ahead", [False, True])
def test_a_prefix_hit_changes_no_bit(ahead: bool) -> None:
    """The same prompts again in one engine, whose cache knows them: fewer tokens are computed, all results are equal."""
    model = made()
    decoder = decoders.Decoder(model, 2048, ahead=ahead, chunk=32)
    engine = decoder.engine()
    computed: list[int] = []
    prefill = decoder.prefill
    decoder.prefill = lambda ids, *rest: computed.append(len(ids)) or prefill(ids, *rest)  # type: ignore[method-assign]
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
        rows = [part[:, sequence.blocks].flatten(1, 2)[:, :600] for part in (cache.keys, cache.values)]
        found.append((logits, *rows))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_samples_share_their_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 samples the prompt is computed once; each is what it is alone."""
    model = made()
    ids = decoders.prompt(50, 3)
    one = SamplingParams(max_new_tokens=10, temperature=1.0, seed=9, n=20)
    lengths: list[int] = []
    prefill = decoders.Decoder.prefill
    monkeypatch.setattr(
        decoders.Decoder, "prefill", lambda self, ids, *rest: lengths.append(len(ids)) or prefill(self, ids, *rest)
    )
    together, _ = answers(model, [ids], [one])
    assert lengths == [32, 18]
    monkeypatch.setattr("baize_engine.generation.loop.generate.__kwdefaults__", {"max_rows": 1})
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
    model = made()
    decoder = decoders.Decoder(model, 1024, chunk=32)
    engine, cache = decoder.engine(), decoder.cache
    wanted = engine.generate(PROMPTS[:3], GREEDY)
    run = engine._run(engine._writers(PROMPTS, PARAMS, AS_FILES_SAY))
    for _ in range(20):
        next(run)
    assert cache.free_blocks < cache.num_blocks
    run.close()
    assert cache.free_blocks == cache.num_blocks
    assert [each.token_ids for each in engine.generate(PROMPTS[:3], GREEDY)] == [each.token_ids for each in wanted]


def test_two_batches_may_be_open_at_once() -> None:
    model = made()
    decoder = decoders.Decoder(model, 1024, chunk=32)
    engine = decoder.engine()
    wanted = [each.token_ids for each in engine.generate(PROMPTS, GREEDY)]
    runs = [engine._writers(PROMPTS[:4], GREEDY, AS_FILES_SAY), engine._writers(PROMPTS[4:], GREEDY, AS_FILES_SAY)]
    for _ in zip(engine._run(runs[0]), engine._run(runs[1]), strict=True):
        pass
    assert [writer.done.token_ids for run in runs for _, writer in run] == wanted


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
