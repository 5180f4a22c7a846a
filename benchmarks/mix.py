"""A seeded mix of prompts and answer lengths, distributed like those of conversations. Knows no engine."""

from __future__ import annotations

import random
from dataclasses import dataclass

SPREAD = 0.8  # standard deviation of a length's logarithm


@dataclass(frozen=True)
class Mix:
    """Prompts, and the tokens wanted after each."""

    prompts: list[list[int]]
    outputs: list[int]

    def part(self, count: int) -> Mix:
        return Mix(self.prompts[:count], self.outputs[:count])


def lengths(count: int, mean: int, most: int, draw: random.Random) -> list[int]:
    """`count` log-normal lengths from 1 to `most`, whose mean is `mean` within rounding and what `most` cuts off."""
    drawn = [draw.lognormvariate(0, SPREAD) for _ in range(count)]
    return [max(1, min(most, round(length * mean * count / sum(drawn)))) for length in drawn]


def mix(count: int, prompt_mean: int, output_mean: int, positions: int, vocabulary: int, seed: int) -> Mix:
    draw = random.Random(seed)
    first, second = (lengths(count, mean, positions // 2, draw) for mean in (prompt_mean, output_mean))
    return Mix([[draw.randrange(3, vocabulary) for _ in range(length)] for length in first], second)
