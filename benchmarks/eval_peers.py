"""transformers on an evaluation's questions, as people run it by hand: batches, padded on the left, the longest prompts first.

Knows no benchmark and no engine. Logits of last positions alone are made, as `generate` makes them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from baize_engine.evaluation.task import Choice, Request


@dataclass(frozen=True)
class Asked:
    """A question. ids: its prompt's. candidates: the first ids of a choice's options. ends: ids that end an answer."""

    request: Request
    ids: list[int]
    candidates: tuple[int, ...]
    ends: frozenset[int]

    @property
    def options(self) -> tuple[str, ...]:
        """The texts among which one is chosen; there are none where a text is generated."""
        return self.request.options if isinstance(self.request, Choice) else ()

    @property
    def new_tokens(self) -> int:
        """The most tokens of an answer."""
        return 1 if isinstance(self.request, Choice) else self.request.params.max_new_tokens

    def cut(self, said: Sequence[int]) -> list[int]:
        """What was said, through the first id that ends it."""
        end = next((n for n, each in enumerate(said) if each in self.ends), len(said))
        return list(said[: min(end + 1, self.new_tokens)])


class Peer(Protocol):
    """Another engine. computed: tokens of prompts, padding included, that it has computed so far."""

    name: str
    computed: int

    def answers(self, asked: Sequence[Asked], batch: int) -> list[list[int]]:
        """What is said after each prompt: of a choice the likeliest candidate, else ids through the one that ends them."""


class Transformers:
    """transformers' LLaMA of a folder."""

    name = "transformers"

    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        from transformers import LlamaForCausalLM

        self._model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(device)
        self._device, self.computed = device, 0

    def answers(self, asked: Sequence[Asked], batch: int) -> list[list[int]]:
        order = sorted(range(len(asked)), key=lambda number: -len(asked[number].ids))
        found: dict[int, list[int]] = {}
        for begin in range(0, len(order), batch):
            part = order[begin : begin + batch]
            rows = [asked[number] for number in part]
            said = self._chosen(rows) if rows[0].candidates else self._generated(rows)
            found |= {number: each.cut(ids) for number, each, ids in zip(part, rows, said, strict=True)}
        return [found[number] for number in range(len(asked))]

    def logits(self, ids: list[int]) -> torch.Tensor:
        """(vocabulary,) float32 of what follows the ids, which run alone."""
        with torch.inference_mode():
            out = self._model(torch.tensor([ids], device=self._device), logits_to_keep=1)
            return torch.as_tensor(out.logits[0, -1]).float()

    def _chosen(self, rows: Sequence[Asked]) -> list[list[int]]:
        ids, mask = self._padded(rows)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            out = self._model(ids, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=1)
        candidates = torch.tensor([row.candidates for row in rows], device=self._device)
        best = out.logits[:, -1].gather(1, candidates).argmax(1, keepdim=True)
        return [list(each) for each in candidates.gather(1, best).tolist()]

    def _generated(self, rows: Sequence[Asked]) -> list[list[int]]:
        ids, mask = self._padded(rows)
        made = self._model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=rows[0].new_tokens, pad_token_id=0,
            eos_token_id=sorted(rows[0].ends),
        )  # fmt: skip
        return [list(each) for each in made[:, ids.shape[1] :].tolist()]

    def _padded(self, rows: Sequence[Asked]) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, mask) of prompts that end together."""
        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, longest - len(row.ids) :] = torch.tensor(row.ids)
            mask[number, longest - len(row.ids) :] = 1
        self.computed += ids.numel()
        return ids.to(self._device), mask.to(self._device)
