"""lm-evaluation-harness's own `hf` model on an evaluation's questions, through the methods that it answers tasks' requests by.

Importing this imports the harness. Prompts are given as ids: transformers' tokenizer splits some spaces and characters
otherwise than sentencepiece. The ids that are generated are kept on their way to becoming texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from eval_peers import Asked
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


class Harness(HFLM):  # type: ignore[misc]  # without the harness it is Any
    """The `hf` model of a folder that has a tokenizer."""

    name = "lm_eval hf"

    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        super().__init__(pretrained=str(folder), device=device, dtype=str(dtype).removeprefix("torch."), batch_size=1)
        self.computed = 0
        self._ids: dict[str, list[int]] = {}  # of prompts that are continued
        self._said: dict[tuple[int, ...], list[int]] = {}  # by the prompt's ids

    def answers(self, asked: Sequence[Asked], batch: int) -> list[list[int]]:
        self.batch_size_per_gpu = batch
        return self._chosen(asked) if asked[0].candidates else self._generated(asked)

    def _chosen(self, asked: Sequence[Asked]) -> list[list[int]]:
        requests = [(("", ""), each.ids, [candidate]) for each in asked for candidate in each.candidates]
        found = iter(self._loglikelihood_tokens(requests, disable_tqdm=True))
        said = []
        for each in asked:
            logprobs = [next(found)[0] for _ in each.candidates]
            said.append([each.candidates[logprobs.index(max(logprobs))]])
        return said

    def _generated(self, asked: Sequence[Asked]) -> list[list[int]]:
        requests = []
        for number, each in enumerate(asked):
            until = [self.tok_decode([end], skip_special_tokens=False) for end in sorted(each.ends)]
            how = {"until": until, "max_gen_toks": each.new_tokens, "do_sample": False}
            requests.append(Instance("generate_until", {}, (each.request.prompt, how), number))
        self._said.clear()
        self._ids = {each.request.prompt: each.ids for each in asked}
        self.generate_until(requests, disable_tqdm=True)
        return [each.cut(self._said[tuple(each.ids)]) for each in asked]

    def tok_batch_encode(self, strings: Sequence[str], *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.tokenizer.padding_side = "left"
        rows = [self._ids[text] for text in strings]
        padded = self.tokenizer.pad({"input_ids": rows}, padding="longest", return_tensors="pt")
        return padded["input_ids"], padded["attention_mask"]

    def _model_call(self, inps: torch.Tensor, *more: Any, **options: Any) -> torch.Tensor:
        self.computed += inps.numel()
        return torch.as_tensor(super()._model_call(inps, *more, **options))

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        self.computed += context.numel()
        made: torch.Tensor = super()._model_generate(context, max_length, stop, **options)
        for prompt, mask, ids in zip(context, options["attention_mask"], made[:, context.shape[1] :], strict=True):
            self._said[tuple(prompt[mask.bool()].tolist())] = ids.tolist()
        return made
