"""Proposers that know the answer, err, or propose nonsense, and engines that speculate with them beside plain ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import decoders
import torch
from fakes import ByteTokenizer

from baize_engine import Engine, SamplingParams
from baize_engine.completion import Completion
from baize_engine.generation.loop import Loop
from baize_engine.generation.sampling import TokenLogprobs
from baize_engine.generation.sequence import Sequence as Sample
from baize_engine.generation.speculation.proposer import NOTHING, Proposer, Prospect
from baize_engine.generation.speculation.speculator import Speculator
from baize_engine.loaded_model import LoadedModel
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.step_costs import StepCosts

FREE = StepCosts({1: 1.0, 2: 1.0})  # rows cost nothing: whatever may be proposed is
MOST = 6

Place = tuple[int, int]  # prompt and sample
P = TypeVar("P", bound=Proposer)


class Proposals:
    """What tests' proposers have in common: they propose up to `most` tokens, ids `vocabulary` and above never."""

    token_cost = 0.0

    def __init__(self, most: int = MOST, vocabulary: int = 96) -> None:
        self.most, self.vocabulary = most, vocabulary
        self.proposed = self.accepted = self.moves = 0

    def prospect(self, sequence: Sample) -> Prospect:
        return Prospect(0.9, self.most)

    def propose(self, wanted: Sequence[tuple[Sample, int]]) -> list[list[int]]:
        return [self.draft(sequence, count) for sequence, count in wanted]

    def draft(self, sequence: Sample, count: int) -> list[int]:
        raise NotImplementedError

    def verified(self, sequence: Sample, proposed: int, accepted: int) -> None:
        self.proposed += proposed
        self.accepted += accepted

    def moved(self, sequence: Sample) -> None:
        self.moves += 1


class Oracle(Proposals):
    """Knows answers, and proposes each of their tokens with chance `right`; else, and after their end, one at random.

    Proposes nothing for other samples.

    With `steady` it wants to propose `most` tokens always; else for some sequences fewer or none, and of those that it is
    asked for it may propose fewer or none, too.
    """

    def __init__(
        self, answers: Mapping[Place, Sequence[int]], right: float = 1.0, seed: int = 0, most: int = MOST,
        steady: bool = True, vocabulary: int = 96,
    ) -> None:  # fmt: skip
        super().__init__(most, vocabulary)
        self._answers, self._right, self._steady, self._rng = answers, right, steady, random.Random(seed)

    def prospect(self, sequence: Sample) -> Prospect:
        if (sequence.prompt_index, sequence.index) not in self._answers:
            return NOTHING
        return Prospect(0.9, self.most if self._steady else self._rng.randrange(self.most + 1))

    def draft(self, sequence: Sample, count: int) -> list[int]:
        if not self._steady and self._rng.random() < 0.2:
            count = self._rng.randrange(count)
        made = len(sequence.token_ids)
        draft = list(self._answers[sequence.prompt_index, sequence.index][made : made + count])
        draft += [self._some() for _ in range(count - len(draft))]
        return [token if self._rng.random() < self._right else self._some() for token in draft]

    def _some(self) -> int:
        return self._rng.randrange(self.vocabulary)


class Garbage(Proposals):
    """Proposes ids at random."""

    def __init__(self, seed: int = 0, most: int = MOST, vocabulary: int = 96) -> None:
        super().__init__(most, vocabulary)
        self._rng = random.Random(seed)

    def draft(self, sequence: Sample, count: int) -> list[int]:
        return [self._rng.randrange(self.vocabulary) for _ in range(count)]


class Greatest(Proposals):
    """Proposes the last id of the vocabulary only."""

    def draft(self, sequence: Sample, count: int) -> list[int]:
        return [self.vocabulary - 1] * count


class Silent(Proposals):
    """Wants to propose, and then has nothing."""

    def draft(self, sequence: Sample, count: int) -> list[int]:
        return []


class Letters(ByteTokenizer):
    """A letter for each id, so that stop strings span tokens; ids from 90 on are the two halves of an é."""

    def piece(self, token_id: int) -> str | bytes:
        if token_id >= 90:
            return b"\xc3\xa9"[token_id % 2 : token_id % 2 + 1]
        return chr(ord("a") + token_id % 26) if token_id > 2 else ""


@dataclass(frozen=True)
class Answer:
    """All that a caller sees of a sample."""

    place: Place
    token_ids: list[int]
    text: str
    finish_reason: str | None
    stop_reason: int | str | None
    logprobs: list[TokenLogprobs] | None
    seed: int | None
    error: str | None

    @classmethod
    def of(cls, made: Completion) -> Answer:
        return cls(
            (made.prompt_index, made.index), made.token_ids, made.text, made.finish_reason, made.stop_reason,
            made.logprobs, made.seed, None if made.error is None else f"{type(made.error).__name__}: {made.error}",
        )  # fmt: skip


def engine_of(
    model: Llama, proposer: Proposer | Callable[[KVCache], Proposer] | None = None, tokens: int = 4096, *,
    ahead: bool = False, chunk: int | None = None, cache_dtype: torch.dtype | None = None, speculate_tokens: int = 16,
    rows: int = 64, **fields: object,
) -> Engine:  # fmt: skip
    """A plain engine over a new cache of `tokens` tokens, or one that verifies what `proposer`, or what it makes for the cache,
    proposes."""
    decoder = decoders.Decoder(model, tokens, ahead=ahead, chunk=chunk, cache_dtype=cache_dtype)
    proposer = proposer(decoder.cache) if callable(proposer) else proposer
    speculator = None if proposer is None else Speculator(proposer, FREE, speculate_tokens, rows)
    loop = Loop(decoder, rows, speculator=speculator)
    config = model.config
    most = {"vocab_size": config.vocab_size, "max_model_len": config.max_position_embeddings}
    return Engine(LoadedModel(loop, **{"eos_token_ids": (2,), "tokenizer": Letters(), **most, **fields}))  # type: ignore[arg-type]


def ask(engine: Engine, prompts: list[list[int]], params: list[SamplingParams]) -> list[Answer]:
    """The answers, those that fail among them. All blocks must be free then."""
    made = [each for group in engine.completions(prompts, params, raise_errors=False) for each in group]
    assert decoders.all_free(engine)
    return [Answer.of(each) for each in made]


def known(answers: Sequence[Answer]) -> dict[Place, list[int]]:
    """What an Oracle needs."""
    return {answer.place: answer.token_ids for answer in answers}


def compare(
    prompts: list[list[int]], params: list[SamplingParams], engine: Callable[[Proposer | None], Engine],
    proposer: Callable[[list[Answer]], P],
) -> tuple[list[Answer], P]:  # fmt: skip
    """The answers of `engine(None)`, which must be those of `engine(proposer(answers))`; and the proposer."""
    plain = engine(None)
    wanted = ask(plain, prompts, params)
    proposing = proposer(wanted)
    speculating = engine(proposing)
    assert ask(speculating, prompts, params) == wanted
    assert speculating.usage.generated_tokens == plain.usage.generated_tokens
    return wanted, proposing


def run_both(cfg: dict, dtype: torch.dtype = torch.float16, quantize: str | None = None) -> tuple:
    """In the interpreter's process: (answers, answers of a speculating engine, tokens proposed and accepted)."""
    model = decoders.make(cfg, dtype, quantize, joined=True)
    prompts = [decoders.prompt(15, 1), decoders.prompt(3, 2)]
    params = [
        SamplingParams(max_new_tokens=7, logprobs=1, ignore_eos=True),
        SamplingParams(max_new_tokens=5, temperature=1.0, seed=3, top_p=0.9, ignore_eos=True),
    ]
    wanted = ask(engine_of(model, None, 256, ahead=True, chunk=16), prompts, params)
    oracle = Oracle(known(wanted), 0.7, 1, most=3)
    got = ask(engine_of(model, oracle, 256, ahead=True, chunk=16), prompts, params)
    return wanted, got, (oracle.proposed, oracle.accepted)
