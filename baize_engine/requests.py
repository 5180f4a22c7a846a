"""Checks the requests to an engine, and turns prompts and parameters into token ids and sequences.

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
from baize_engine.generation.params import DRAWN_SEEDS, SamplingParams
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.shaping import check_choice
from baize_engine.generation.stop import stop_token_ids
from baize_engine.text.options import AS_FILES_SAY, TextOptions
from baize_engine.text.tokenizer import Tokenizer

Prompt = str | abc.Sequence[int]  # or an array of ids, of numpy or torch


@dataclass(frozen=True)
class Requests:
    """The limits of a model, and checks against them. Without a tokenizer, for the reason `why_no_text`, prompts must be ids.

    All methods raise RequestError, which names the prompt by its index or the field of the parameters.
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
        """The sequences of a request, params.n per prompt, in the order of the prompts."""
        prompt_ids = self.prompts(prompts, text)
        sequences = []
        for number, (ids, sampling) in enumerate(zip(prompt_ids, self.params(params, len(prompt_ids)), strict=True)):
            seed = sampling.seed
            if seed is None:
                seed = secrets.randbelow(DRAWN_SEEDS) if sampling.temperature else 0  # greedy samples do not use it
            stops = stop_token_ids(sampling, self.eos_token_ids)
            most = min(sampling.max_new_tokens, self.max_model_len - len(ids))
            for index in range(sampling.n):
                sequence = Sequence(ids, sampling, most, seed, index, number, stops)
                if self.tokenizer is not None:
                    sequence.text = AnswerText(self.tokenizer, ids, sampling.stop, sampling.min_new_tokens)
                sequences.append(sequence)
        return sequences

    def prompts(
        self, prompts: Prompt | abc.Sequence[Prompt], text: TextOptions = AS_FILES_SAY, answered: bool = True
    ) -> list[list[int]]:
        """The ids of one prompt or several: see `prompt`."""
        items = plain.items(prompts)
        if items is None:
            raise RequestError(f"prompts is {prompts!r}, wanted a text, a list of token ids, or a list of these")
        single = isinstance(items, str) or (len(items) > 0 and all(_is_number(item) for item in items))
        several: abc.Sequence[Any] = [items] if single else items
        return [self.prompt(prompt, f"prompt {i}", text, answered) for i, prompt in enumerate(several)]

    def prompt(self, prompt: Any, name: str, text: TextOptions = AS_FILES_SAY, answered: bool = True) -> list[int]:
        """The ids of one prompt, all in the vocabulary. Errors call it `name`.

        A prompt has 1 to max_model_len ids, or at most max_model_len - 1 if it is to be `answered`.
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
        """For each completion, the ids of prompt and completion together, and the index at which the completion's begin."""
        text = TextOptions(add_bos=add_bos, add_eos=False)
        context = self.prompt(prompt, "prompt 0", text)
        items = plain.items(completions)
        if isinstance(completions, str) or items is None:
            raise RequestError(f"completions is {completions!r}, wanted a list of texts or of lists of ids")
        return [self._joined(prompt, context, completion, text, i) for i, completion in enumerate(items)]

    def pairs(self, pairs: abc.Sequence[tuple[abc.Sequence[int], abc.Sequence[int]]]) -> list[tuple[list[int], int]]:
        """For each (context, continuation), lists of ids, those of both together, and the index at which the second begins."""
        joined = []
        for i, (context, continuation) in enumerate(pairs):
            before, after = self.ids(context, f"context {i}"), self.ids(continuation, f"continuation {i}")
            for name, ids in (("context", before), ("continuation", after)):
                if not ids:
                    raise RequestError(f"{name} {i} has 0 tokens, wanted at least 1")
            count, most = len(before) + len(after), self.max_model_len + 1  # nothing is computed for the last id
            if count > most:
                limit = f"wanted at most {most} (max_model_len + 1)"
                raise RequestError(f"context {i} and its continuation have {count} tokens, {limit}")
            joined.append((before + after, len(before)))
        return joined

    def params(self, params: SamplingParams | abc.Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        """The parameters of each of `count` prompts, checked against the model."""
        given = SamplingParams() if params is None else params
        if not isinstance(given, (SamplingParams, abc.Sequence)):
            raise RequestError(f"params is {given!r}, wanted SamplingParams or a list of them")
        per_prompt = [given] * count if isinstance(given, SamplingParams) else list(given)
        if len(per_prompt) != count:
            raise RequestError(
                f"params has {len(per_prompt)} entries, wanted one for all or one for each of {count} prompts"
            )
        for i, sampling in enumerate(per_prompt):
            if not isinstance(sampling, SamplingParams):
                raise RequestError(f"params[{i}] is {sampling!r}, wanted SamplingParams")
            if sampling.stop:
                self.need_tokenizer("SamplingParams.stop")
            if i == 0 or sampling is not per_prompt[i - 1]:
                check_choice(sampling, self.vocab_size, stop_token_ids(sampling, self.eos_token_ids))
        return per_prompt

    def ids(self, ids: Any, name: str) -> list[int]:
        """`ids` as a list of token ids, all in the vocabulary. Errors call it `name`."""
        items = plain.items(ids)
        if items is None:
            raise RequestError(f"{name} is {ids!r}, wanted a list of token ids")
        token_ids = []
        for position, item in enumerate(items):
            token_id = plain.integer(item)
            if token_id is None or not 0 <= token_id < self.vocab_size:
                wanted = f"wanted a token id from 0 to {self.vocab_size - 1}"
                raise ValueRefused(f"{name} has", item, f" at {position}, {wanted}")
            token_ids.append(token_id)
        return token_ids

    def need_tokenizer(self, what: str) -> Tokenizer:
        """The tokenizer. RequestError, saying that `what` needs it, if there is none."""
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
    """Whether `item` belongs to a list of ids, even if wrongly, as True does, and not to a list of prompts."""
    return isinstance(item, int) or plain.integer(item) is not None
