"""Scoring: log-probabilities of a prompt's own tokens, or of candidates for the next one, from the prompt's logits.

Each object is the `scoring` of a Sequence that generates nothing. It takes logits in slices of a few positions, in order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from baize_engine.generation.sampling import TokenLogprobs


class GivenTokens:
    """The log-probabilities of ids[start:], each given all ids before it, and of the `top` likeliest ids in each place.

    start: at least 1, because the first token of a text has nothing before it to be predicted from. The sequence's prompt
    must be ids[:-1]: the last id needs no logits.
    """

    def __init__(self, ids: list[int], start: int, top: int = 0) -> None:
        self.first = start - 1
        self.not_finite: int | None = None
        self.logprobs: list[TokenLogprobs] = []
        self._ids, self._top = ids, top

    def take(self, position: int, logits: Tensor) -> None:
        """Takes the logits (n, V) float32 of positions `position` to `position + n - 1`."""
        if self.not_finite is None:
            self.not_finite = _first_not_finite(position, logits)
        wanted = torch.tensor(self._ids[position + 1 : position + 1 + len(logits)], device=logits.device)
        logprobs = torch.log_softmax(logits, dim=-1)
        given = logprobs.gather(1, wanted[:, None])[:, 0].tolist()
        values, ids = torch.topk(logprobs, min(self._top, logprobs.shape[1]))
        for logprob, top_ids, top_values in zip(given, ids.tolist(), values.tolist(), strict=True):
            self.logprobs.append(TokenLogprobs(logprob, tuple(zip(top_ids, top_values, strict=True))))

    def total(self) -> float:
        """The sum of the tokens' log-probabilities."""
        return math.fsum(token.logprob for token in self.logprobs)


class Endings(GivenTokens):
    """GivenTokens of several texts that differ in their last id alone, which one sequence runs: what they share is its prompt.

    texts: (ids, start) of each; ids[start:] are scored.
    """

    def __init__(self, texts: Sequence[tuple[list[int], int]], top: int = 0) -> None:
        super().__init__(texts[0][0], min(start for _, start in texts), top)
        self.prompt_ids = self._ids[:-1]
        self._texts = texts
        self._last: list[float] = []  # of each text's last id

    def take(self, position: int, logits: Tensor) -> None:
        """Takes the logits (n, V) float32 of positions `position` to `position + n - 1`."""
        super().take(position, logits)
        if position + len(logits) == len(self.prompt_ids):
            lasts = [ids[-1] for ids, _ in self._texts]
            self._last = torch.log_softmax(logits[-1], dim=-1)[lasts].tolist()

    def of_each(self) -> Iterator[list[TokenLogprobs]]:
        """The log-probabilities of each text, once all logits were taken."""
        for (_, start), logprob in zip(self._texts, self._last, strict=True):
            yield [*self.logprobs[start - 1 - self.first : -1], TokenLogprobs(logprob, self.logprobs[-1].top)]


class NextToken:
    """The log-probabilities of `candidates`, in their order, as the next token of a prompt of `length` tokens."""

    def __init__(self, length: int, candidates: list[int]) -> None:
        self.first = length - 1
        self.not_finite: int | None = None
        self.logprobs: list[float] = []
        self._candidates = candidates

    def take(self, position: int, logits: Tensor) -> None:
        """Takes the logits (1, V) float32 of the last position."""
        self.not_finite = _first_not_finite(position, logits)
        wanted = torch.tensor(self._candidates, dtype=torch.int64, device=logits.device)
        self.logprobs = torch.log_softmax(logits[0], dim=-1)[wanted].tolist()


def _first_not_finite(position: int, logits: Tensor) -> int | None:
    """The first position whose logits are not all finite, or None. `position` is that of the first row."""
    finite: list[bool] = torch.isfinite(logits).all(1).tolist()
    return None if all(finite) else position + finite.index(False)
