"""Questions: the examples of a task as token ids, all made and checked before the model runs."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256

from baize_engine.engine import Engine
from baize_engine.errors import RequestError
from baize_engine.evaluation.options import EvaluationOptions
from baize_engine.evaluation.selection import Selection
from baize_engine.evaluation.task import Choice, Encoder, Example, Request
from baize_engine.generation.params import SamplingParams
from baize_engine.progress import Advance, no_progress
from baize_engine.text.lines import LineEncoder
from baize_engine.text.tokenizer import Tokenizer

IDS = "i"  # array's type of token ids: 4 bytes each, where a list takes 36; MMLU's prompts have 20 million
GREEDY = SamplingParams()


@dataclass(frozen=True)
class Question:
    """An example as the model is asked it: the ids of its prompt, and params for texts that continue it, or options.

    options: of which one is chosen; there are none where texts are generated. candidates: the first id of each. too_long: why
    it is not asked.
    """

    example: Example
    ids: array[int]
    params: SamplingParams = GREEDY
    options: tuple[str, ...] = ()
    candidates: tuple[int, ...] = ()
    too_long: str | None = None

    @property
    def prompt_digest(self) -> str:
        """The first 16 digits of SHA-256 of the prompt's ids, 4 bytes each, the lowest first: the same for all models."""
        return sha256(self.ids.tobytes()).hexdigest()[:16]

    @property
    def content(self) -> bytes:
        """All that determines the outputs besides the model."""
        asked = {"params": asdict(self.params), "options": self.options, "candidates": self.candidates}
        return json.dumps(asked, sort_keys=True).encode() + b"\n" + self.ids.tobytes()


class _ByLines:
    """A tokenizer as an Encoder that keeps the ids of lines: shots come again, and MMLU's prompts are encoded twice."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lines = {special: LineEncoder(tokenizer, special) for special in (False, True)}
        self.decode = tokenizer.decode

    def encode(self, text: str, add_bos: bool | None = None, *, allow_special: bool = False) -> list[int]:
        return self._tokenizer.encode("", add_bos) + self._lines[allow_special].encode(text)


def questions(
    engine: Engine, selection: Selection, options: EvaluationOptions, progress: Advance = no_progress
) -> list[Question]:
    """The questions of a task, in order. progress: is told of each.

    RequestError names the task and the example whose prompt is too long for the model or has parameters that it cannot serve.
    """
    tokenizer = engine.tokenizer
    if tokenizer is None:
        raise RequestError("an evaluation needs the model's tokenizer, and the model has none")
    encoder, task, found = _ByLines(tokenizer), selection.task, []
    for example in selection.examples:
        request = task.request(example, options.format == "chat", encoder)
        try:
            found.append(_question(engine, encoder, example, request, options.add_bos))
        except RequestError as error:
            raise RequestError(f"{task.name}, example {example.name}: {error}") from None
        progress(1)
    long = [question for question in found if question.too_long is not None]
    if long and (options.too_long == "refuse" or len(long) == len(found)):
        remedy = "" if len(long) == len(found) else ' (too_long "wrong" asks the others, and counts these as wrong)'
        where = f"{task.name}, example {long[0].example.name}"
        raise RequestError(f"{where}: {long[0].too_long}; {len(long)} of {len(found)} examples are too long{remedy}")
    return found


def _question(engine: Engine, encoder: Encoder, example: Example, request: Request, add_bos: bool) -> Question:
    if isinstance(request, Choice):
        return _choice(engine, encoder, example, request, add_bos)
    ids = encoder.encode(request.prompt, add_bos, allow_special=request.parse_special)
    question = Question(example, array(IDS, ids), request.params, too_long=_too_long(ids, engine.max_model_len - 1))
    if question.too_long is None:
        engine.encode(ids, request.params)  # refuses what the model cannot serve
    return question


def _choice(engine: Engine, encoder: Encoder, example: Example, request: Choice, add_bos: bool) -> Question:
    most = engine.max_model_len  # nothing follows
    ids = encoder.encode(request.prompt, add_bos)
    if len(ids) > most and request.shorter is not None:
        ids = encoder.encode(request.shorter, add_bos)
    candidates = _candidates(encoder, request.options)
    return Question(example, array(IDS, ids), GREEDY, request.options, candidates, _too_long(ids, most))


def _too_long(ids: Sequence[int], most: int) -> str | None:
    return f"the prompt has {len(ids)} tokens, the model takes {most}" if len(ids) > most else None


def _candidates(encoder: Encoder, options: Sequence[str]) -> tuple[int, ...]:
    encoded = [encoder.encode(option, add_bos=False) for option in options]
    for option, ids in zip(options, encoded, strict=True):
        if not ids:
            raise RequestError(f"the option {option!r} has no token")
    return tuple(ids[0] for ids in encoded)
