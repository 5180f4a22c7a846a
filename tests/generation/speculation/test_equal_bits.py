"""Speculation changes no bit: ids, log-probabilities, texts and ends of random requests, on every backend."""

from __future__ import annotations

import random
from dataclasses import replace

import decoders
import proposers
import pytest
import tiny
import torch
from interpreter import Interpreter
from proposers import Garbage, Greatest, Oracle, Silent, compare, engine_of, known

from baize_engine import _C, Engine, SamplingParams
from baize_engine.generation.speculation.proposer import Proposer
from baize_engine.model.llama import Llama

pytestmark = pytest.mark.usefixtures("one_thread")

BACKENDS = [*(f"cpp-{row.name}" for row in _C.implementations() if row.why_not() is None), "torch"]
KINDS = {
    "float32": (torch.float32, None), "float16": (torch.float16, None), "bfloat16": (torch.bfloat16, None),
    "int8": (torch.float16, "int8"), "int4": (torch.float16, "int4"),
}  # fmt: skip
SHAPES = [
    {}, {"num_key_value_heads": 1}, {"num_key_value_heads": 2}, {"num_key_value_heads": 2, "head_dim": 12},
    {"tie_word_embeddings": True}, {"vocab_size": 101, "intermediate_size": 76},
]  # fmt: skip


def asked(rng: random.Random, most: int) -> SamplingParams:
    """Any parameters, of answers of at most `most` tokens."""
    new = rng.choice([1, 2, most // 2, most])
    return SamplingParams(
        max_new_tokens=new, temperature=rng.choice([0, 0, 0.7, 1.3]), seed=2**63 - 1 - rng.randrange(2**63),
        n=rng.choice([1, 1, 2, 3]), top_k=rng.choice([0, 5]), top_p=rng.choice([1.0, 0.9]),
        min_p=rng.choice([0, 0.05]), logprobs=rng.choice([None, None, 0, 2]),
        repetition_penalty=rng.choice([1, 1, 1.2]), presence_penalty=rng.choice([0, 0, 0.5]),
        frequency_penalty=rng.choice([0, 0, 0.5]), logit_bias=rng.choice([{}, {}, {5: 3.0, 9: -2.0}]),
        banned_token_ids=rng.choice([(), (), (11, 12, 13)]),
        allowed_token_ids=rng.choice([None, None, None, range(3, 40)]), min_new_tokens=rng.choice([0, 0, 1, new]),
        stop_token_ids=rng.choice([(), (), range(7, 11), range(40, 60)]), stop=rng.choice([(), (), "ab", ("xyz", "é")]),
        ignore_eos=rng.choice([False, True]),
    )  # fmt: skip


def requests(rng: random.Random, most: int = 30) -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts of which some begin alike, and the parameters of each."""
    stem = decoders.prompt(40, rng.randrange(1000))
    prompts = [
        stem[: rng.choice([0, 0, 17, 40])] + decoders.prompt(rng.randrange(1, 50), rng.randrange(1000))
        for _ in range(rng.choice([1, 2, 5]))
    ]
    return prompts, [asked(rng, most) for _ in prompts]


def erring(answers: list[proposers.Answer], seed: int, right: float = 0.8) -> Oracle:
    return Oracle(known(answers), right, seed, steady=False)


def made(rng: random.Random, dtype: torch.dtype, quantize: str | None) -> Llama:
    """A model of any shape; with float activations for quantised weights, now and then."""
    model = decoders.make(tiny.config(**rng.choice(SHAPES)), dtype, quantize)
    return replace(model, exact_activations=True) if quantize and rng.random() < 0.3 else model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_random_requests(backend: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In caches of any size and type, prompts in chunks or whole, the host ahead or not, few rows a step or many."""
    monkeypatch.setenv("BAIZE_BACKEND", backend)
    proposed = accepted = 0
    for seed in range(4):
        rng = random.Random(seed)
        model = made(rng, *KINDS[kind])
        prompts, params = requests(rng)
        tokens, rows = rng.choice([128, 144, 256, 2048]), rng.choice([4, 64, 64])
        settings = {
            "ahead": rng.random() < 0.5, "chunk": rng.choice([None, 32]), "rows": rows,
            "cache_dtype": rng.choice([None, None, torch.float32, torch.float16, torch.bfloat16]),
        }  # fmt: skip

        def engine(proposer: Proposer | None, model=model, tokens=tokens, settings=settings) -> Engine:  # type: ignore[no-untyped-def]
            return engine_of(model, proposer, tokens, **settings)

        _, oracle = compare(prompts, params, engine, lambda answers, seed=seed: erring(answers, seed))  # type: ignore[misc]
        proposed, accepted = proposed + oracle.proposed, accepted + oracle.accepted
    assert proposed > accepted > 20


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sequences_that_are_preempted_and_drafts_that_find_few_blocks(
    backend: str, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAIZE_BACKEND", backend)
    model = decoders.make(tiny.config(num_key_value_heads=2), torch.float16)
    prompts = [decoders.prompt(5 + 9 * n, n) for n in range(5)]
    params = [SamplingParams(max_new_tokens=50, temperature=n % 2, seed=n, logprobs=None if n % 3 else 1, n=1 + n // 4)
              for n in range(5)]  # fmt: skip
    moves = 0
    for tokens in (128, 160, 192):
        with decoders.actions() as kinds:
            _, oracle = compare(
                prompts,
                params,
                lambda proposer, tokens=tokens: engine_of(model, proposer, tokens, ahead=ahead),  # type: ignore[misc]
                lambda answers: Oracle(known(answers), 0.9),
            )
        assert oracle.proposed > oracle.accepted > 0
        assert kinds.count("SwapOut") >= oracle.moves
        moves += oracle.moves
    assert moves > 0


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(
    "proposer",
    [Greatest(), Silent(), Garbage(1), Garbage(2, 15), *(pytest.param(right, id=str(right)) for right in (0, 0.5, 1))],
    ids=lambda one: type(one).__name__,
)
def test_whatever_is_proposed(proposer: proposers.Proposals | float, ahead: bool) -> None:
    model = decoders.make(tiny.config(num_key_value_heads=2), torch.float16)
    rng = random.Random(5)
    prompts = [decoders.prompt(rng.randrange(1, 60), n) for n in range(4)]
    params = [SamplingParams(max_new_tokens=40, temperature=n % 2, seed=n, logprobs=n // 2 or None) for n in range(4)]

    def chosen(answers: list[proposers.Answer]) -> proposers.Proposals:
        return Oracle(known(answers), proposer) if isinstance(proposer, int | float) else proposer

    with decoders.actions() as kinds:
        compare(prompts, params, lambda one: engine_of(model, one, ahead=ahead), chosen)
    if proposer == 1:  # 1 + MOST tokens a step
        assert kinds.count("Launch") <= 40 + 40 / (1 + proposers.MOST) + 2


def test_all_rows_of_a_step() -> None:
    """Drafts of 15 tokens for 4 sequences, and a draft of 63 for one."""
    model = decoders.make(tiny.config(num_key_value_heads=2), torch.float16)
    for count, most in ((4, 15), (1, 63)):
        prompts = [decoders.prompt(7 + n, n) for n in range(count)]
        params = [SamplingParams(max_new_tokens=80, logprobs=1, ignore_eos=True)] * count
        answers, oracle = compare(
            prompts,
            params,
            lambda proposer, most=most: engine_of(model, proposer, speculate_tokens=most),  # type: ignore[misc]
            lambda answers, most=most: Oracle(known(answers), most=most),  # type: ignore[misc]
        )
        assert oracle.accepted == oracle.proposed >= most * count
        assert all(len(answer.token_ids) == 80 for answer in answers)


# Triton's kernels in the interpreter, activations of the weights' type as on a GPU; the host runs ahead.


def test_the_triton_decoder(triton: Interpreter) -> None:
    (wanted, got, counts), _ = triton.run("proposers", "run_both", tiny.config(num_key_value_heads=2))
    assert got == wanted
    assert counts[0] > counts[1] > 0
