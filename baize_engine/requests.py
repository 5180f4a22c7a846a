"""What is asked of an engine, checked and as token ids: prompts, parameters, and the sequences that they stand for.

Knows the tokenizer and the model's limits; no decoder.
"""

from __future__ import annotations

import secrets
from collections import abc
from dataclasses import dataclass
from typing import Any

from baize_engine import plain
from baize_engine.completion import AnswerText
from baize_engine.errors import RequestError, ValueRefused
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.shaping import check_choice
from baize_engine.generation.stop import stop_token_ids
from baize_engine.text.options import AS_FILES_SAY, TextOptions
from baize_engine.text.tokenizer import Tokenizer

DRAWN_SEEDS = 2**32  # short enough to be typed again, and exact in JSON for whoever reads its numbers as doubles
Prompt = str | abc.Sequence[int]  # or an array of ids, of numpy or torch


@dataclass(frozen=True)
class Requests:
    """What a model can be asked. Without a tokenizer, for the reason `why_no_text`, prompts are ids.

    All methods raise RequestError, which names the prompt by its index, or the field of the parameters.
    """

    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    tokenizer: Tokenizer | None
    why_no_text: str

    def sequences(
        self,
        prompts: Prompt | abc.Sequence[Prompt],
        params: SamplingParams | abc.Sequence[SamplingParams] | None,
        text: TextOptions = AS_FILES_SAY,
    ) -> list[Sequence]:
        """params.n for each prompt, in their order."""
        many = self.prompts(prompts, text)
        found = []
        for number, (ids, one) in enumerate(zip(many, self.params(params, len(many)), strict=True)):
            seed = one.seed
            if seed is None:
                seed = secrets.randbelow(DRAWN_SEEDS) if one.temperature else 0  # which greedy samples do not use
            stops = stop_token_ids(one, self.eos_token_ids)
            most = min(one.max_new_tokens, self.max_model_len - len(ids))
            for index in range(one.n):
                sequence = Sequence(ids, one, most, seed, index, number, stops)
                if self.tokenizer is not None:
                    sequence.text = AnswerText(self.tokenizer, ids, one.stop, one.min_new_tokens)
                found.append(sequence)
        return found

    def prompts(
        self, prompts: Prompt | abc.Sequence[Prompt], text: TextOptions = AS_FILES_SAY, answered: bool = True
    ) -> list[list[int]]:
        """One prompt or several, as ids: see `prompt`."""
        found = plain.items(prompts)
        if found is None:
            raise RequestError(f"prompts is {prompts!r}, wanted a text, a list of token ids, or a list of these")
        single = isinstance(found, str) or (len(found) > 0 and all(_is_number(item) for item in found))
        many: abc.Sequence[Any] = [found] if single else found
        return [self.prompt(prompt, f"prompt {i}", text, answered) for i, prompt in enumerate(many)]

    def prompt(self, prompt: Any, name: str, text: TextOptions = AS_FILES_SAY, answered: bool = True) -> list[int]:
        """The ids of one prompt, which errors call `name`, each in the vocabulary.

        There are 1 to max_model_len of them, or one less where it is to be `answered`.
        """
        ids = self._ids(prompt, name, text)
        most = self.max_model_len - answered
        if not 0 < len(ids) <= most:
            limit = "max_model_len - 1" if answered else "max_model_len"
            raise RequestError(f"{name} has {len(ids)} tokens, wanted 1 to {most} ({limit})")
        return ids

    def continued(
        self, prompt: Prompt, completions: abc.Sequence[Prompt], add_bos: bool | None = None
    ) -> list[tuple[list[int], int]]:
        """For each completion the ids of prompt and completion together, and where the completion's begin."""
        text = TextOptions(add_bos=add_bos, add_eos=False)
        context = self.prompt(prompt, "prompt 0", text)
        many = plain.items(completions)
        if isinstance(completions, str) or many is None:
            raise RequestError(f"completions is {completions!r}, wanted a list of texts or of lists of ids")
        return [self._joined(prompt, context, completion, text, i) for i, completion in enumerate(many)]

    def params(self, params: SamplingParams | abc.Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        """One for each of `count` prompts, which this model can serve."""
        one = SamplingParams() if params is None else params
        if not isinstance(one, (SamplingParams, abc.Sequence)):
            raise RequestError(f"params is {one!r}, wanted SamplingParams or a list of them")
        each = [one] * count if isinstance(one, SamplingParams) else list(one)
        if len(each) != count:
            raise RequestError(f"params has {len(each)} entries, wanted one for all or one for each of {count} prompts")
        for i, one in enumerate(each):
            if not isinstance(one, SamplingParams):
                raise RequestError(f"params[{i}] is {one!r}, wanted SamplingParams")
            if one.stop:
                self.need_tokenizer("SamplingParams.stop")
            if i == 0 or one is not each[i - 1]:
                check_choice(one, self.vocab_size, stop_token_ids(one, self.eos_token_ids))
        return each

    def ids(self, ids: Any, name: str) -> list[int]:
        """The list of ids in the vocabulary that `ids` is."""
        many = plain.items(ids)
        if many is None:
            raise RequestError(f"{name} is {ids!r}, wanted a list of token ids")
        found = []
        for position, item in enumerate(many):
            token_id = plain.integer(item)
            if token_id is None or not 0 <= token_id < self.vocab_size:
                wanted = f"wanted a token id from 0 to {self.vocab_size - 1}"
                raise ValueRefused(f"{name} has", item, f" at {position}, {wanted}")
            found.append(token_id)
        return found

    def need_tokenizer(self, what: str) -> Tokenizer:
        """The tokenizer, for `what`, which needs it."""
        if self.tokenizer is None:
            raise RequestError(f"{what} needs a tokenizer: {self.why_no_text}")
        return self.tokenizer

    def _ids(self, prompt: Any, name: str, text: TextOptions) -> list[int]:
        if isinstance(prompt, str):
            tokenizer = self.need_tokenizer(f"{name}, a text,")
            ids = tokenizer.encode(prompt, text.add_bos, add_eos=text.add_eos, allow_special=text.parse_special)
            return self.ids(ids, name)
        if plain.items(prompt) is None:
            raise RequestError(f"{name} is {prompt!r}, wanted a text or a list of token ids")
        return self.ids(prompt, name)

    def _joined(
        self, prompt: Prompt, context: list[int], completion: Prompt, text: TextOptions, i: int
    ) -> tuple[list[int], int]:
        name, start = f"completion {i}", len(context)
        if isinstance(completion, str) and isinstance(prompt, str):
            ids = self._ids(prompt + completion, name, text)
            same = [a == b for a, b in zip(context, ids, strict=False)]
            start = same.index(False) if False in same else len(same)
        elif isinstance(completion, str):
            tokenizer = self.need_tokenizer(f"{name}, a text,")
            ids = context + tokenizer.encode(completion, add_bos=False, continues=True)
        else:
            ids = context + self._ids(completion, name, text)
        if len(ids) > self.max_model_len:
            raise RequestError(f"{name} and its prompt have {len(ids)} tokens, wanted at most {self.max_model_len}")
        return ids, start


def _is_number(item: object) -> bool:
    """Whether it stands in a list of ids, rightly or, as True does, wrongly, and not in a list of prompts."""
    return isinstance(item, int) or plain.integer(item) is not None
