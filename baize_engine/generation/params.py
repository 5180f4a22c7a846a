"""SamplingParams: what one request asks of generation, checked where it is made. Knows no model and no tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from baize_engine.errors import RequestError

SEED_LIMIT = 2**63  # seeds travel to the kernels as int64


@dataclass(frozen=True)
class SamplingParams:
    """How to draw tokens and when to stop. RequestError names the field, what it holds and what it may hold.

    temperature 0 is greedy: the other filters and the seed then change nothing, and with n > 1 the samples are equal.
    top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are "off". min_p is relative to the most likely token.
    seed None draws a fresh one per prompt; each of the n samples of a seed is its own stream.
    stop: strings that end the text, cut off before them; one string is taken as a tuple of one.
    stop_token_ids end it too, beside the model's own end tokens, which ignore_eos switches off.
    logprobs None: not computed; k >= 0: the log-probability of each token and of the k most likely ones.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None

    def __post_init__(self) -> None:
        self._integer("max_new_tokens", 1)
        # 1e-4 still is greedy for practical purposes; below it, logits / temperature may pass float32's range.
        self._number("temperature", lambda x: x == 0 or x >= 1e-4, "0 or a finite number of at least 0.0001")
        self._integer("top_k", 0)
        self._number("top_p", lambda x: 0 < x <= 1, "a number above 0 and at most 1")
        self._number("min_p", lambda x: 0 <= x <= 1, "a number from 0 to 1")
        self._number("repetition_penalty", lambda x: x > 0, "a finite number above 0")
        if self.seed is not None:
            self._integer("seed", 0, SEED_LIMIT - 1)
        if not isinstance(self.ignore_eos, bool):
            self._refuse("ignore_eos", self.ignore_eos, "True or False")
        self._integer("n", 1)
        if self.logprobs is not None:
            self._integer("logprobs", 0)
        object.__setattr__(self, "stop", self._stop_strings())
        object.__setattr__(self, "stop_token_ids", self._stop_ids())

    def _stop_strings(self) -> tuple[str, ...]:
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stops, Sequence) or isinstance(stops, bytes):
            self._refuse("stop", self.stop, "a string or a sequence of strings")
        for i, stop in enumerate(stops):
            if not isinstance(stop, str) or not stop:
                self._refuse(f"stop[{i}]", stop, "a non-empty string")
        return tuple(stops)

    def _stop_ids(self) -> tuple[int, ...]:
        if not isinstance(self.stop_token_ids, Sequence) or isinstance(self.stop_token_ids, (str, bytes)):
            self._refuse("stop_token_ids", self.stop_token_ids, "a sequence of token ids")
        for i, token_id in enumerate(self.stop_token_ids):
            if not _is_integer(token_id) or token_id < 0:
                self._refuse(f"stop_token_ids[{i}]", token_id, "a token id, an integer of at least 0")
        return tuple(self.stop_token_ids)

    def _integer(self, field: str, low: int, high: int | None = None) -> None:
        value = getattr(self, field)
        if not _is_integer(value) or value < low or (high is not None and value > high):
            self._refuse(field, value, f"an integer of at least {low}" + ("" if high is None else f", at most {high}"))

    def _number(self, field: str, fits: Callable[[float], bool], wanted: str) -> None:
        value = getattr(self, field)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or not fits(value)
        ):
            self._refuse(field, value, wanted)

    def _refuse(self, field: str, found: object, wanted: str) -> NoReturn:
        raise RequestError(f"SamplingParams.{field} is {found!r}, wanted {wanted}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
