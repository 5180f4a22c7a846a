"""A model that drafts changes no answer, keeps to its sequences' blocks, and is right where it has the model's own weights."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from inspect import signature

import decoders
import pytest
import tiny
import torch
from drafts import Flipping, Watched, compare
from interpreter import Interpreter
from proposers import ask, engine_of

from baize_engine import SamplingParams
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.speculation.draft_model import DraftModel
from baize_engine.generation.speculation.proposer import NOTHING, Proposer
from baize_engine.model.int4_form import int4_form
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.runner import Batch

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = SamplingParams(max_new_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=24, temperature=0.8, top_p=0.9, seed=11, ignore_eos=True)
STEM = decoders.prompt(40, 7)
KINDS = {
    "float32": (torch.float32, None), "float16": (torch.float16, None), "bfloat16": (torch.bfloat16, None),
    "int8": (torch.float16, "int8"),
}  # fmt: skip


def own_draft(model: Llama, **changes: int) -> Watched:
    """What is left after prompts of many lengths, of which some begin alike and one has twins."""
    prompts = [decoders.prompt(5, 1), [*STEM, 3, 4], [*STEM, 5], [9], decoders.prompt(60, 2)]
    params = [GREEDY, SAMPLED, replace(SAMPLED, n=3, seed=5), replace(GREEDY, max_new_tokens=40), SAMPLED]
    return compare(model, partial(Watched, model), prompts, params, **changes)


@pytest.mark.parametrize("kind", ["float32", "int8"])
@pytest.mark.parametrize("ahead", [False, True])
def test_all_is_accepted_of_the_same_weights(kind: str, ahead: bool) -> None:
    draft = own_draft(decoders.make(tiny.config(num_key_value_heads=2), *KINDS[kind]), ahead=ahead)
    assert draft.accepted == draft.proposed > 100
    assert draft.moves == 0


def test_all_is_accepted_of_the_same_weights_in_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAIZE_BACKEND", "torch")
    draft = own_draft(decoders.make(tiny.config()))
    assert draft.accepted == draft.proposed > 100


def test_prompts_may_be_longer_than_a_piece_and_the_cache_small() -> None:
    """Sequences are swapped out and come back to other blocks: then the draft begins again."""
    model = decoders.make(tiny.config())
    prompts = [decoders.prompt(length, length) for length in (50, 40, 3, 33)]
    params = [replace(GREEDY, max_new_tokens=60), SAMPLED, replace(SAMPLED, max_new_tokens=50), GREEDY]

    def small(cache: KVCache) -> Watched:
        made = Watched(model, cache)
        made._prompts.prefill_chunk = 16
        return made

    with decoders.actions() as kinds:
        draft = compare(model, small, prompts, params, 128, chunk=16)
    assert kinds.count("SwapIn") > draft.moves > 0
    assert draft.accepted == draft.proposed > 60


@pytest.mark.parametrize("seed", range(4))
def test_a_rejected_token_spoils_nothing_that_follows(seed: int) -> None:
    model = decoders.make(tiny.config(num_key_value_heads=1))
    prompts = [decoders.prompt(5, 1), [*STEM, 3, 4], [*STEM, 5], [9]]
    params = [replace(GREEDY, max_new_tokens=60), SAMPLED, replace(SAMPLED, n=3, max_new_tokens=40), GREEDY]
    draft = compare(
        model, partial(Flipping, model, seed=seed), prompts, params, random.Random(seed).choice([160, 2048])
    )
    assert draft.proposed > draft.accepted > 30


def asked(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=rng.randrange(1, 40), temperature=rng.choice([0, 0.7, 1.3]), seed=rng.randrange(9999),
        n=rng.choice([1, 1, 2, 3]), top_k=rng.choice([0, 5]), top_p=rng.choice([1.0, 0.9]),
        logprobs=rng.choice([None, None, 2]), repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
        logit_bias=rng.choice([{}, {5: 3.0}]), min_new_tokens=rng.choice([0, 1]), stop=rng.choice([(), "ab"]),
        stop_token_ids=rng.choice([(), (), range(7, 13)]),
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "backend"), [*((kind, "") for kind in KINDS), ("float16", "torch")])
def test_random_requests(kind: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another model, and of the model's int4 form, in caches that are too small or not, of another type or not."""
    monkeypatch.setenv("BAIZE_BACKEND", backend)
    proposed = 0
    for seed in range(2):
        rng = random.Random(seed)
        model = decoders.make(tiny.config(num_key_value_heads=rng.choice([1, 2, 4])), *KINDS[kind])
        other = decoders.make(tiny.config(num_hidden_layers=1, max_position_embeddings=rng.choice([128, 70])))
        small = int4_form(model)
        prompts = [STEM[: rng.choice([0, 17, 40])] + decoders.prompt(rng.randrange(1, 45), n) for n in range(3)]
        params, tokens = [asked(rng) for _ in prompts], rng.choice([144, 512])
        how = {
            "ahead": rng.choice([False, True]),
            "cache_dtype": rng.choice([None, torch.float16]) if not backend else None,
        }
        for make in (partial(Watched, other), partial(Watched, small, shared=True)):
            proposed += compare(model, make, prompts, params, tokens, **how).proposed
    assert proposed > 100


def test_nothing_is_proposed_beyond_the_positions_of_the_draft() -> None:
    model = decoders.make(tiny.config())
    short = decoders.make(tiny.config(max_position_embeddings=40))
    cache = decoders.Decoder(model, 256).cache
    draft, one = Watched(short, cache), Sequence(decoders.prompt(34), SamplingParams(), 60)
    assert [draft.prospect(one).most, one.token_ids.extend([5, 6, 7])] == [6, None]
    assert draft.prospect(one).most == 4  # at positions 36 to 39; the fourth is never fed
    one.token_ids += [8, 9, 10]
    assert draft.prospect(one).most == 1
    one.token_ids.append(11)
    assert draft.prospect(one) == NOTHING
    own = replace(short, weights=model.weights)
    done = compare(model, partial(Watched, own), [decoders.prompt(20)], [replace(GREEDY, max_new_tokens=80)])
    assert done.accepted == done.proposed >= 12


def test_a_proposal_ends_at_a_stop_id_and_before_what_is_no_token() -> None:
    model = decoders.make(tiny.config())
    prompt = decoders.prompt(12)
    (plain,) = ask(engine_of(model), [prompt], [GREEDY])
    stop = plain.token_ids[2]
    assert stop not in plain.token_ids[:2]
    draft = compare(model, partial(Watched, model), [prompt], [replace(GREEDY, stop_token_ids=(stop,))])
    assert (draft.proposed, draft.accepted) == (0, 0)  # one of a sequence that ended with it is not told
    broken = {name: weight * float("nan") for name, weight in model.weights.items() if isinstance(weight, torch.Tensor)}
    blind = replace(model, weights=broken)
    assert compare(model, partial(Watched, blind), [prompt], [SAMPLED]).proposed == 0


def test_a_draft_without_finite_logits_is_soon_tried_no_more() -> None:
    model = decoders.make(tiny.config())
    broken = {name: weight * float("nan") for name, weight in model.weights.items() if isinstance(weight, torch.Tensor)}
    draft = DraftModel(replace(model, weights=broken), decoders.Decoder(model, 256).cache, 0.5, 4, 64)
    one = Sequence(decoders.prompt(12), SAMPLED, 24, block_table=[0], num_cached=11, num_in_flight=4)
    chances = []
    for _ in range(20):
        chances.append(draft.prospect(one).chance)
        assert draft.propose([(one, 3)]) == [[]]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] > 0.8
    assert chances[-1] < 0.2


def test_an_error_while_it_steps_leaves_nothing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoders.make(tiny.config())
    prompts, params = [STEM, [9], [*STEM, 4]], [GREEDY, SAMPLED, SAMPLED]
    wanted = ask(engine_of(model), prompts, params)
    made: list[Watched] = []

    def draft(cache: KVCache) -> Watched:
        made.append(Watched(model, cache))
        return made[0]

    engine = engine_of(model, draft)
    launch, launched = Batch.launch, []

    def failing(self: Batch) -> None:
        if self is made[0]._batch:
            launched.append(self)
            if len(launched) == 4:
                raise MemoryError("the draft")
        launch(self)

    monkeypatch.setattr(Batch, "launch", failing)
    with pytest.raises(MemoryError, match="the draft"):
        engine.generate(prompts, params)
    assert decoders.all_free(engine)
    assert ask(engine, prompts, params) == wanted
    assert len(launched) > 10
    assert made[0].accepted == made[0].proposed > 30


def test_as_many_rows_as_there_are_may_be_taken_by_sequences_alone() -> None:
    """No row is left for a token that some lack: it is computed before the step."""
    model = decoders.make(tiny.config())
    prompts = [decoders.prompt(4 + n, n) for n in range(4)]
    draft = compare(model, partial(Watched, model, rows=4), prompts, [GREEDY] * 4)
    assert draft.accepted == draft.proposed > 50


def test_it_has_the_interface() -> None:
    for name in ("prospect", "propose", "verified", "moved"):
        assert signature(getattr(DraftModel, name)) == signature(getattr(Proposer, name))


def test_it_proposes_at_least_one_token() -> None:
    model = decoders.make(tiny.config())
    with pytest.raises(ValueError, match="most is 0, wanted at least 1"):
        DraftModel(model, decoders.Decoder(model).cache, 0.5, 0, 64)


# In the interpreter, activations of the weights' type as on a GPU; the host runs ahead.


@pytest.mark.parametrize("shared", [False, True], ids=["own weights", "int4 form"])
def test_in_triton(triton: Interpreter, shared: bool) -> None:
    (wanted, got, proposed, accepted), _ = triton.run("drafts", "run_both", tiny.config(num_key_value_heads=2), shared)
    assert got == wanted
    assert proposed >= 3
    assert shared or accepted == proposed
