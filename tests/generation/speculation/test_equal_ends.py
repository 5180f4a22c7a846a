"""Speculation changes no end: stop ids and strings, lengths and errors wherever they fall in a draft."""

from __future__ import annotations

from collections.abc import Callable

import decoders
import pytest
import tiny
import torch
from implementations import IMPLEMENTATIONS
from proposers import MOST, Answer, Garbage, Greatest, Letters, Oracle, ask, compare, engine_of, known

from baize_engine import SamplingParams
from baize_engine.model.llama import Llama
from baize_engine.model.step_state import MAX_STOPS

pytestmark = pytest.mark.usefixtures("one_thread")

BACKENDS = [*IMPLEMENTATIONS, "torch"]
PROMPTS = [decoders.prompt(9, 1), decoders.prompt(20, 2)]
LONG = SamplingParams(max_new_tokens=30, temperature=1.0, seed=7, ignore_eos=True)


def model_of(**changes: object) -> Llama:
    return decoders.make(tiny.config(num_key_value_heads=2, **changes), torch.float16)


def like(params: SamplingParams, **changes: object) -> SamplingParams:
    fields = {"max_new_tokens": params.max_new_tokens, "temperature": params.temperature, "seed": params.seed}
    return SamplingParams(**{**fields, "ignore_eos": True, **changes})  # type: ignore[arg-type]


def uncut(model: Llama) -> list[Answer]:
    """The answers that nothing ends early: what an oracle proposes then goes on after the end."""
    return ask(engine_of(model), PROMPTS, [LONG] * 2)


def same(
    model: Llama, params: SamplingParams, beyond: list[Answer], ahead: bool = False, **fields: object
) -> list[Answer]:
    """The answers with `params` to the first prompt while the second is answered, plain and with all drafts right."""
    answers, oracle = compare(
        PROMPTS,
        [params, LONG],
        lambda proposer: engine_of(model, proposer, ahead=ahead, **fields),  # type: ignore[arg-type]
        lambda _: Oracle(known(beyond)),
    )
    assert oracle.accepted > 0
    return answers


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("others", [0, MAX_STOPS], ids=["few", "more than the device knows"])
def test_a_stop_id_at_each_place_of_a_draft(ahead: bool, others: int) -> None:
    model = model_of()
    beyond = uncut(model)
    ids = beyond[0].token_ids
    places = [n for n in range(3 * (1 + MOST)) if ids[n] not in ids[:n]]
    assert len(places) > 10
    for place in places:
        params = like(LONG, stop_token_ids=[*range(1000, 1000 + others), ids[place]])
        answer = same(model, params, beyond, ahead)[0]
        assert (answer.token_ids, answer.stop_reason) == (ids[: place + 1], ids[place])


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_stop_string_at_each_place_of_a_draft(length: int) -> None:
    """Within a draft, across its end, completed by the token after it."""
    model = model_of()
    beyond = uncut(model)
    text = beyond[0].text
    for begin in range(2 * (1 + MOST)):
        stop = text[begin : begin + length]
        answer = same(model, like(LONG, stop=[stop, "not in it"]), beyond)[0]
        assert (answer.text, answer.stop_reason) == (text[: text.index(stop)], stop)
        assert answer.finish_reason == "stop"


def test_neither_ends_an_answer_before_its_least_length() -> None:
    model = model_of()
    beyond = uncut(model)
    stop_id, stop = beyond[0].token_ids[3], beyond[0].text[2:4]
    for least in range(1, 2 * (1 + MOST)):
        params = like(LONG, min_new_tokens=least, stop_token_ids=[stop_id], stop=stop)
        answer = same(model, params, beyond)[0]
        assert len(answer.token_ids) >= least
        assert stop_id not in answer.token_ids[:least]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("logprobs", [None, 1])
def test_each_length(ahead: bool, logprobs: int | None) -> None:
    model = model_of()
    beyond = uncut(model)
    for count in range(1, 2 * (1 + MOST) + 1):
        answer = same(model, like(LONG, max_new_tokens=count, logprobs=logprobs), beyond, ahead)[0]
        assert (answer.token_ids, answer.finish_reason) == (beyond[0].token_ids[:count], "length")


@pytest.mark.parametrize("backend", BACKENDS)
def test_to_the_last_position_of_a_model(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAIZE_BACKEND", in_full(backend))
    model = model_of(max_position_embeddings=64)
    prompts = [decoders.prompt(length, length) for length in (63, 62, 60, 31)]
    params = [like(LONG, max_new_tokens=200, temperature=n % 2) for n in range(4)]
    for tokens in (4096, 128):  # of a cache
        answers, oracle = compare(
            prompts, params, lambda one, tokens=tokens: engine_of(model, one, tokens),  # type: ignore[misc]
            lambda answers: Oracle(known(answers), 0.9),
        )  # fmt: skip
        assert oracle.accepted > 0
        assert [len(one.token_ids) for one in answers] == [1, 2, 4, 33]


def test_the_counts_of_penalties_are_those_of_the_tokens_before() -> None:
    """A penalty so strong that no token comes twice: each row of a step must know the tokens accepted in it."""
    params = like(LONG, temperature=0, frequency_penalty=1e6, logprobs=1)
    answers, oracle = compare(
        PROMPTS, [params] * 2, lambda one: engine_of(model_of(), one), lambda answers: Oracle(known(answers))
    )
    assert oracle.accepted == oracle.proposed > 30
    assert all(len(set(one.token_ids)) == 30 for one in answers)


# Logits that are not finite: the embedding of a token is damaged, so that whoever makes it ends.

Damage = Callable[[Llama, int], None]


def nan(model: Llama, token: int) -> None:
    model.weights["model.embed_tokens.weight"][token] = float("nan")


def infinite(model: Llama, token: int) -> None:
    model.weights["model.embed_tokens.weight"][token] = float("inf")


def in_full(backend: str) -> str:
    return backend if backend == "torch" else f"cpp-{backend}"


@pytest.mark.parametrize(
    ("quantize", "damage", "ahead"), [(None, nan, False), ("int8", nan, True), (None, infinite, True)]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_within_a_draft(
    backend: str, quantize: str | None, damage: Damage, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft goes on after it. The message names the place, and the other sequence goes on."""
    monkeypatch.setenv("BAIZE_BACKEND", in_full(backend))
    clean = decoders.make(tiny.config(num_key_value_heads=2), torch.float16, quantize)
    beyond = uncut(clean)
    ids, others = beyond[0].token_ids, beyond[1].token_ids
    places = [n for n in range(1 + MOST) if ids[n] not in ids[:n] + others + PROMPTS[0] + PROMPTS[1]]
    assert len(places) > 2
    for place in places:
        model = decoders.make(tiny.config(num_key_value_heads=2), torch.float16, quantize)
        damage(model, ids[place])
        for logprobs in (None, 0):
            answers = same(model, like(LONG, logprobs=logprobs), beyond, ahead)
            assert answers[0].token_ids == ids[: place + 1]
            assert answers[0].finish_reason == "error"
            assert f"sample 0, step {place + 1} (position {9 + place + 1}): " in str(answers[0].error)
            assert answers[1] == beyond[1]


@pytest.mark.parametrize(("quantize", "damage"), [(None, nan), ("int8", nan), (None, infinite)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_after_a_rejected_token_is_no_error(
    backend: str, quantize: str | None, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts are full of a damaged token that no answer has: its keys and values reach no other row, then or later."""
    monkeypatch.setenv("BAIZE_BACKEND", in_full(backend))
    model = decoders.make(tiny.config(num_key_value_heads=2), torch.float16, quantize)
    params = [LONG, like(LONG, temperature=0, logprobs=1)]
    wanted = ask(engine_of(model), PROMPTS, params)
    bad = max(set(range(3, 96)).difference(*PROMPTS, *(answer.token_ids for answer in wanted)))
    damage(model, bad)
    for tokens in (4096, 128):  # of a cache: in the smaller one, blocks go from one to the other
        answers, greatest = compare(
            PROMPTS, params, lambda one, tokens=tokens: engine_of(model, one, tokens),  # type: ignore[misc]
            lambda _: Greatest(vocabulary=bad + 1),
        )  # fmt: skip
        assert answers == wanted
        assert greatest.proposed > 0 == greatest.accepted


def test_usage_counts_no_rejected_token() -> None:
    model = model_of()
    plain, speculating = engine_of(model), engine_of(model, Garbage())
    assert ask(plain, PROMPTS, [LONG] * 2) == ask(speculating, PROMPTS, [LONG] * 2)
    for name in ("prompt_tokens", "computed_tokens", "generated_tokens"):
        assert getattr(plain.usage, name) == getattr(speculating.usage, name)
    assert plain.usage.generated_tokens == 60


def test_letters_have_halves_of_characters() -> None:
    assert Letters().piece(90) + Letters().piece(91) == "é".encode()  # type: ignore[operator]
