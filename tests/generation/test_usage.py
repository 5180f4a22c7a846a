"""Usage: what the loop counts, with and without speculation, and how it is told."""

from __future__ import annotations

from collections import abc
from dataclasses import fields

import decoders
import pytest
import tiny

from baize_engine import Completion, SamplingParams
from baize_engine.generation.loop import Loop
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.speculation.proposer import Prospect
from baize_engine.generation.speculation.speculator import Speculator
from baize_engine.generation.usage import Meter, Since, Usage
from baize_engine.model.step_costs import StepCosts

SPECULATED = Usage(9, 8, 31, steps=10, step_tokens=30, draft_tokens=40, accepted_tokens=20, step_time=12, plain_time=30)
COSTS = StepCosts({1: 2.0, 2: 3.0, 4: 4.0})  # 1.5 for two rows, 0.25 for each more


class Rereading:
    """Proposes two tokens that plain decoding made, and one that it did not."""

    token_cost = 0.125

    def __init__(self, made: dict[int, list[int]]) -> None:
        self.made = made

    def prospect(self, sequence: Sequence) -> Prospect:
        return Prospect(0.99, 3)

    def propose(self, wanted: abc.Sequence[tuple[Sequence, int]]) -> list[list[int]]:
        drafts = []
        for sequence, count in wanted:
            made, place = self.made[sequence.prompt_index], len(sequence.token_ids)
            drafts.append([*made[place : place + 2], 95 - made[place + 2]][:count])
        return drafts

    def verified(self, sequence: Sequence, proposed: int, accepted: int) -> None:
        assert accepted == min(proposed, 2)

    def moved(self, sequence: Sequence) -> None:
        raise AssertionError("the cache has room for all")


def loop_of(speculator: Speculator | None = None) -> Loop:
    return Loop(decoders.Decoder(decoders.make(tiny.config())), speculator=speculator)


def run(loop: Loop, count: int, tokens: int = 10) -> list[Completion]:
    params = SamplingParams(max_new_tokens=tokens)
    sequences = [Sequence(decoders.prompt(9, seed), params, tokens, prompt_index=seed) for seed in range(count)]
    loop.add(sequences)
    decoders.finish(loop, sequences)
    return [Completion.of(sequence) for sequence in sequences]


def test_plain_steps_make_a_token_of_each_answer() -> None:
    loop = loop_of()
    run(loop, 3)
    assert loop.usage == Usage(27, 27, 30, steps=27, step_tokens=27)
    assert loop.usage.speculation == ""


def test_steps_that_verify_are_counted_by_what_they_cost() -> None:
    """Ten tokens: one with the prompt, then three each from steps of 4, 4 and 3 rows, as no token is left for a fourth."""
    plain = run(loop_of(), 1)
    loop = loop_of(Speculator(Rereading({0: plain[0].token_ids}), COSTS, 3, 64))
    (made,) = run(loop, 1)
    assert made == plain[0]
    usage = loop.usage
    assert (made.num_steps, made.num_draft_tokens, made.num_accepted_tokens) == (3, 8, 6)
    assert usage == Usage(9, 9, 10, 3, 9, 8, 6, usage.step_time, plain_time=9.0)
    assert usage.step_time == pytest.approx(2 * COSTS.of(4) + COSTS.of(3) + 8 * 0.125)
    assert usage.speculation == f"75% accepted, 3.00 tok/step, ~{9 / usage.step_time:.2f}x"


def test_answers_that_share_steps_are_set_beside_plain_steps_that_share_them() -> None:
    plain = run(loop_of(), 2)
    made = {index: each.token_ids for index, each in enumerate(plain)}
    loop = loop_of(Speculator(Rereading(made), COSTS, 3, 64))
    both = run(loop, 2)
    assert both == plain
    usage = loop.usage
    assert usage.steps == sum(each.num_steps for each in both) < usage.step_tokens == 18
    assert usage.draft_tokens == sum(each.num_draft_tokens for each in both)
    assert usage.accepted_tokens == sum(each.num_accepted_tokens for each in both)
    assert usage.plain_time == pytest.approx(9 * COSTS.of(2))


def test_a_difference_is_that_of_each_number() -> None:
    assert Usage(9, 8, 7, 6, 5, 4, 3, 2.0, 1.5) - Usage(1, 2, 3, 4, 5, 4, 3, 2.0, 1.0) == Usage(
        8, 6, 4, 2, 0, 0, 0, 0.0, 0.5
    )


def test_a_meter_counts_every_field_of_a_usage() -> None:
    meter = Meter()
    assert vars(meter).keys() == {field.name for field in fields(Usage)}
    assert meter.read() == Usage()
    meter.accepted_tokens += 3
    assert meter.read() == Usage(accepted_tokens=3)


def test_since_counts_from_its_making() -> None:
    loop = loop_of()
    run(loop, 1)
    since = Since(loop)
    assert since.usage == Usage()
    run(loop, 1, tokens=4)
    assert (since.usage.generated_tokens, since.usage.steps, since.speculation()) == (4, 3, "")


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        (Usage(9, 8, 7, steps=6, step_tokens=6), ""),
        (SPECULATED, "50% accepted, 3.00 tok/step, ~2.50x"),
        (Usage(9, 8, 7, 6, 6, step_time=6, plain_time=6), "nothing proposed, 1.00 tok/step, ~1.00x"),
    ],
    ids=["plain", "speculated", "nothing"],
)
def test_speculation_is_told(usage: Usage, told: str) -> None:
    assert usage.speculation == told
