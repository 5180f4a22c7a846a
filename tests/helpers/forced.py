"""Greedy ids judged by the logits of another decoder after the same tokens: near ties may turn, one wrong id may not stand.

Ids that run freely cannot be compared: after a near tie that turned, all that follow differ, and rightly so.
"""

from __future__ import annotations

from dataclasses import replace

import decoders
import torch
from torch import Tensor

from baize_engine.backend.choose import reference_ops
from baize_engine.model.llama import Llama

Answer = tuple[list[int], list[int]]  # a prompt, and the ids chosen after it


def logits(model: Llama, answer: Answer) -> Tensor:
    """Those that each id is chosen from, all in one call."""
    prompt, ids = answer
    decoder = decoders.Decoder(model, len(prompt) + len(ids))
    return decoder.forward([prompt + ids[:-1]], [decoder.sequence()], all_logits=True)[len(prompt) - 1 :]


def half_error(model: Llama, answers: list[Answer]) -> float:
    """How far logits move where the reference ops have float16 activations, at the most: what any float16 decoder is due."""
    half = replace(model, ops=reference_ops(model.device), activation=torch.float16)
    return max(float((logits(half, each) - logits(model, each)).abs().max()) for each in answers)


def behind(model: Llama, answers: list[Answer]) -> float:
    """How far below the best logit an id was, at the most: at most twice the error of the logits that it was chosen by."""
    found = []
    for answer in answers:
        rows = logits(model, answer)
        chosen = rows.gather(1, torch.tensor(answer[1], device=rows.device)[:, None])[:, 0]
        found.append(float((rows.max(-1).values - chosen).max()))
    return max(found)
