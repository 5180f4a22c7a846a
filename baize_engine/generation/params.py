"""SamplingParams: the parameters of a request, checked when they are made. Knows no model and no tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from baize_engine import plain
from baize_engine.errors import ValueRefused
from baize_engine.fields import option

SEED_LIMIT = 2**63  # seeds travel to the kernels as int64
DRAWN_SEEDS = 2**32  # short enough to retype, and exact for JSON readers that parse numbers as doubles
# logits / temperature must stay in float32's range, and FORBIDDEN (shaping.py) below every logit that may be drawn
COLDEST, HOTTEST = 1e-4, 1e6
LARGEST = 1e9  # penalty or bias, for the same reason; usual values are 2 and 100
MOST_SAMPLES = 2**16  # per prompt: each takes some memory from the start, and a mistyped n must not exhaust it
ID_LIMIT = 2**31
IDS = f"from 0 to {ID_LIMIT - 1}"


@dataclass(frozen=True)
class SamplingParams:
    """How to draw tokens and when to stop.

    Logits are changed in this order: bias, penalties, forbidden ids, temperature, top_k, top_p, min_p. Numbers, flags and
    ids may be numpy's or torch's, and lists of ids or strings may be arrays; the fields hold Python's own. A field's metadata
    are the settings of its command-line flag, as argparse takes them.

    Arguments:
        max_new_tokens: the most tokens of an answer.
        temperature: 0 is greedy, and anything below 1e-4 becomes 0. Then top_k, top_p, min_p and seed change nothing, and the
            samples of n > 1 are equal.
        top_k: draw from the k likeliest tokens; 0 is off.
        top_p: draw from the likeliest tokens whose probabilities add up to this much; 1 is off.
        min_p: drop tokens that are less likely than this times the likeliest one; 0 is off.
        repetition_penalty: for each id in prompt or answer, divides logits above 0 and multiplies the others; 1 is off.
        seed: None draws a new seed for each prompt. Each of the n samples of a seed has its own random stream.
        stop: a string or several. The first that is completed ends the answer, and the text is cut before it.
        stop_token_ids: ids that end the answer, in addition to the model's own EOS tokens.
        ignore_eos: the model's own EOS tokens do not end the answer.
        n: samples per prompt.
        logprobs: k >= 0 returns the log-probability of each token and of the k likeliest ones; None computes none.
        presence_penalty: subtracted from the logit of each id in the answer; 0 is off, and a negative one encourages
            repetition.
        frequency_penalty: the same, once for each time that the answer has the id.
        logit_bias: {id: value added to its logit}.
        allowed_token_ids: the only ids that may be drawn; None allows all.
        banned_token_ids: ids that may not be drawn.
        min_new_tokens: before that many tokens no stop id is drawn and no stop string ends the answer; a stop string that
            begins earlier and is completed later does.

    Raises:
        RequestError: a value is not allowed; the message names the field, its value and the values allowed.
    """

    max_new_tokens: int = option(128, "maximum number of tokens to generate", metavar="N")
    temperature: float = option(0.0, "sampling temperature; 0 always takes the likeliest token", metavar="T")
    top_k: int = option(0, "sample from the K likeliest tokens; 0 turns this off", metavar="K")
    top_p: float = option(1.0, "sample from the likeliest tokens whose probabilities add up to P", metavar="P")
    min_p: float = option(0.0, "drop tokens that are less than P times as likely as the likeliest", metavar="P")
    repetition_penalty: float = option(
        1.0, "divide the logits of tokens in the prompt or the completion; above 1 discourages them", metavar="R"
    )
    seed: int | None = option(None, "seed that makes sampling reproducible (default: a new one each time)", metavar="S")
    stop: str | Sequence[str] = option((), "end the completion before this text (may be repeated)", metavar="TEXT")
    stop_token_ids: Sequence[int] = option((), "end the completion at these tokens, besides the model's EOS tokens")
    ignore_eos: bool = option(False, "do not end the completion at the model's EOS tokens")
    n: int = option(1, "number of completions of each prompt", metavar="N")
    logprobs: int | None = option(
        None, "with --output: give log-probabilities of each token and of the K likeliest ones", metavar="K"
    )
    presence_penalty: float = option(0.0, "subtract R from the logits of tokens in the completion", metavar="R")
    frequency_penalty: float = option(
        0.0, "subtract R from a token's logit for each time that the completion has it", metavar="R"
    )
    logit_bias: Mapping[int, float] = field(
        default_factory=dict,
        hash=False,
        metadata={"metavar": "ID=VALUE", "help": "add VALUE to the logit of token ID (may be repeated)"},
    )
    allowed_token_ids: Sequence[int] | None = option(None, "generate only these tokens")
    banned_token_ids: Sequence[int] = option((), "never generate these tokens")
    min_new_tokens: int = option(
        0, "minimum number of tokens to generate; nothing ends a completion before", metavar="N"
    )

    def __post_init__(self) -> None:
        self._integer("max_new_tokens", 1)
        self._integer("min_new_tokens", 0)
        if self.min_new_tokens > self.max_new_tokens:
            self._refuse("min_new_tokens", self.min_new_tokens, f"at most max_new_tokens, {self.max_new_tokens}")
        self._number("temperature", lambda x: 0 <= x <= HOTTEST, f"a finite number from 0 to {HOTTEST:g}")
        if self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)
        self._integer("top_k", 0, SEED_LIMIT - 1)
        self._number("top_p", lambda x: 0 < x <= 1, "a number above 0 and at most 1")
        self._number("min_p", lambda x: 0 <= x <= 1, "a number from 0 to 1")
        wanted = f"a finite number above 0, from {1 / LARGEST:g} to {LARGEST:g}"
        self._number("repetition_penalty", lambda x: 1 / LARGEST <= x <= LARGEST, wanted)
        for name in ("presence_penalty", "frequency_penalty"):
            self._number(name, lambda x: abs(x) <= LARGEST, f"a number from {-LARGEST:g} to {LARGEST:g}")
        if self.seed is not None:
            self._integer("seed", 0, SEED_LIMIT - 1)
        ignores = plain.number(self.ignore_eos)
        if not isinstance(ignores, bool):
            self._refuse("ignore_eos", self.ignore_eos, "True or False")
        object.__setattr__(self, "ignore_eos", ignores)
        self._integer("n", 1, MOST_SAMPLES)
        if self.logprobs is not None:
            self._integer("logprobs", 0)
        object.__setattr__(self, "stop", self._stop_strings())
        object.__setattr__(self, "logit_bias", self._biases())
        for name in ("stop_token_ids", "allowed_token_ids", "banned_token_ids"):
            object.__setattr__(self, name, self._ids(name))

    def _stop_strings(self) -> tuple[str, ...]:
        given = plain.number(self.stop)
        stops = (given,) if isinstance(given, str) else plain.items(given)
        if stops is None:
            self._refuse("stop", self.stop, "a string or a sequence of strings")
        for i, stop in enumerate(stops):
            if not isinstance(stop, str) or not stop:
                self._refuse(f"stop[{i}]", stop, "a non-empty string")
            if any("\ud800" <= character <= "\udfff" for character in stop):
                self._refuse(f"stop[{i}]", stop, "valid Unicode, without half of a surrogate pair: no text holds one")
        return tuple(map(str, stops))  # numpy has its own class of strings

    def _ids(self, field: str) -> tuple[int, ...] | None:
        given = getattr(self, field)
        if field == "allowed_token_ids" and given is None:
            return None
        ids = plain.items(given)
        if ids is None or isinstance(ids, str):
            self._refuse(field, given, "a sequence of token ids")
        if field == "allowed_token_ids" and not len(ids):
            self._refuse(field, given, "None or at least one token id")
        return tuple(self._id(f"{field}[{i}]", token_id) for i, token_id in enumerate(ids))

    def _id(self, name: str, given: object) -> int:
        token_id = plain.integer(given)
        if token_id is None or not 0 <= token_id < ID_LIMIT:
            self._refuse(name, given, f"a token id, an integer {IDS}")
        return token_id

    def _biases(self) -> dict[int, float]:
        if not isinstance(self.logit_bias, Mapping):
            self._refuse("logit_bias", self.logit_bias, "{token id: what is added to its logit}")
        biases: dict[int, float] = {}
        for key, given in self.logit_bias.items():
            token_id, value = plain.integer(key), plain.number(given)
            if token_id is None or not 0 <= token_id < ID_LIMIT:
                self._refuse("logit_bias", self.logit_bias, f"token ids, integers {IDS}, in place of {key!r}")
            if not _is_number(value) or abs(value) > LARGEST:
                wanted = f"a number from {-LARGEST:g} to {LARGEST:g} (banned_token_ids forbids a token)"
                self._refuse(f"logit_bias[{token_id}]", given, wanted)
            if token_id in biases:  # torch's numbers are distinct keys even when they are equal
                self._refuse("logit_bias", self.logit_bias, f"each token id once: {token_id} appears twice")
            biases[token_id] = value
        return biases

    def _integer(self, field: str, low: int, high: int | None = None) -> None:
        given = getattr(self, field)
        value = plain.integer(given)
        if value is None or value < low or (high is not None and value > high):
            self._refuse(field, given, f"an integer of at least {low}" + ("" if high is None else f", at most {high}"))
        object.__setattr__(self, field, value)

    def _number(self, field: str, fits: Callable[[float], bool], wanted: str) -> None:
        value = plain.number(getattr(self, field))
        if not _is_number(value) or not fits(value):
            self._refuse(field, value, wanted)
        object.__setattr__(self, field, value)

    def _refuse(self, field: str, found: object, wanted: str) -> NoReturn:
        raise ValueRefused(f"SamplingParams.{field} is", found, f", wanted {wanted}")


def _is_number(value: object) -> bool:
    """Whether `value` is a finite number in a float's range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max
