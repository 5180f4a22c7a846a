"""What is asked of an engine, checked and as token ids: prompts, parameters, and the samples that they stand for.

Knows the tokenizer and the model's limits; no decoder.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from baize_engine.errors import RequestError
from baize_engine.generation.loop import Sample
from baize_engine.generation.params import SEED_LIMIT, SamplingParams
from baize_engine.generation.shaping import check_choice
from baize_engine.generation.stop import stop_token_ids
from baize_engine.tokenizer import Tokenizer

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Intake:
    """What a model can be asked. Without a tokenizer, for the reason `why_no_text`, prompts are ids.

    All methods raise RequestError, which names the prompt by its index, or the field of the parameters.
    """

    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    tokenizer: Tokenizer | None
    why_no_text: str

    def samples(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Sample]:
        """params.n for each prompt, in their order."""
        many = self.prompts(prompts)
        found = []
        for i, (ids, one) in enumerate(zip(many, self.params(params, len(many)), strict=True)):
            seed = secrets.randbelow(SEED_LIMIT) if one.seed is None else one.seed
            stops = stop_token_ids(one, self.eos_token_ids)
            found += [Sample(i, index, ids, one, seed, stops) for index in range(one.n)]
        return found

    def prompts(self, prompts: Prompt | Sequence[Prompt]) -> list[list[int]]:
        """One prompt or several, as ids: 1 to max_model_len - 1 of them, each in the vocabulary."""
        if not isinstance(prompts, Sequence):
            raise RequestError(f"prompts is {prompts!r}, wanted a text, a list of token ids, or a list of these")
        single = isinstance(prompts, str) or (len(prompts) > 0 and all(isinstance(item, int) for item in prompts))
        many: Sequence[Any] = [prompts] if single else prompts
        return [self.prompt(prompt, f"prompt {i}") for i, prompt in enumerate(many)]

    def prompt(self, prompt: Any, name: str, add_eos: bool | None = None) -> list[int]:
        """The ids of one prompt, which errors call `name`. add_eos: None: an end id follows where the tokenizer says so."""
        ids = self._ids(prompt, name, add_eos)
        if not 0 < len(ids) < self.max_model_len:
            wanted = f"wanted 1 to {self.max_model_len - 1} (max_model_len - 1)"
            raise RequestError(f"{name} has {len(ids)} tokens, {wanted}")
        return ids

    def continued(self, prompt: Prompt, completions: Sequence[Prompt]) -> list[tuple[list[int], int]]:
        """For each completion the ids of prompt and completion together, and where the completion's begin."""
        context = self.prompt(prompt, "prompt 0", add_eos=False)
        if isinstance(completions, str) or not isinstance(completions, Sequence):
            raise RequestError(f"completions is {completions!r}, wanted a list of texts or of lists of ids")
        return [self._joined(prompt, context, completion, i) for i, completion in enumerate(completions)]

    def params(self, params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        """One for each of `count` prompts, which this model can serve."""
        one = SamplingParams() if params is None else params
        if not isinstance(one, (SamplingParams, Sequence)):
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

    def check_ids(self, ids: Sequence[int], name: str) -> None:
        """Refuses what is not a list of ids in the vocabulary."""
        if not isinstance(ids, Sequence):
            raise RequestError(f"{name} is {ids!r}, wanted a list of token ids")
        for position, token_id in enumerate(ids):
            if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < self.vocab_size:
                wanted = f"wanted a token id from 0 to {self.vocab_size - 1}"
                raise RequestError(f"{name} has {token_id!r} at {position}, {wanted}")

    def need_tokenizer(self, what: str) -> Tokenizer:
        """The tokenizer, for `what`, which needs it."""
        if self.tokenizer is None:
            raise RequestError(f"{what} needs a tokenizer: {self.why_no_text}")
        return self.tokenizer

    def _ids(self, prompt: Any, name: str, add_eos: bool | None = False) -> list[int]:
        if isinstance(prompt, str):
            ids = self.need_tokenizer(f"{name}, a text,").encode(prompt, add_eos=add_eos)
        elif isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
            ids = list(prompt)
        else:
            raise RequestError(f"{name} is {prompt!r}, wanted a text or a list of token ids")
        self.check_ids(ids, name)
        return ids

    def _joined(self, prompt: Prompt, context: list[int], completion: Prompt, i: int) -> tuple[list[int], int]:
        name, start = f"completion {i}", len(context)
        if isinstance(completion, str) and isinstance(prompt, str):
            ids = self._ids(prompt + completion, name)
            same = [a == b for a, b in zip(context, ids, strict=False)]
            start = same.index(False) if False in same else len(same)
        elif isinstance(completion, str):
            tokenizer = self.need_tokenizer(f"{name}, a text,")
            ids = context + tokenizer.encode(completion, add_bos=False, continues=True)
        else:
            ids = context + self._ids(completion, name)
        if len(ids) > self.max_model_len:
            raise RequestError(f"{name} and its prompt have {len(ids)} tokens, wanted at most {self.max_model_len}")
        return ids, start
