"""pass@k: the probability that at least one of k samples is right. Knows numbers only."""

from __future__ import annotations

from math import prod


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The unbiased estimate from n `samples` of which c are `correct`: 1 - C(n - c, k) / C(n, k).

    A product of k ratios, so that nothing overflows. ValueError unless 0 <= c <= n and 1 <= k <= n.
    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1.
    """
    if not (0 <= correct <= samples and 1 <= k <= samples):
        raise ValueError(
            f"pass@{k} of {samples} samples, {correct} right: wanted 1 <= k <= samples and 0 <= right <= samples"
        )
    return 1 - prod(max(samples - correct - i, 0) / (samples - i) for i in range(k))
