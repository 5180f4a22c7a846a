"""What a rank of a tensor-parallel run holds, reads and sends in a decode step, from the config alone.

Lower bounds, as in cost.py. Knows no rank, link or device.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from baize_engine.model import cost, names
from baize_engine.model.config import ModelConfig
from baize_engine.model.share import Share

PARTIAL = 4  # bytes: ranks exchange float32 sums and logits


@dataclass(frozen=True)
class RankCost:
    """Of one rank, in bytes. weights: in memory; kv: a token in its cache; read: of memory in a decode step.

    exchanges: of all ranks in a step; sent: what the rank sends to the others in them.
    """

    weights: int
    kv: int
    read: int
    exchanges: int
    sent: int

    def seconds(self, memory: float, link: float) -> tuple[float, float]:
        """The least time of a step for its memory and for its link, of `memory` and `link` bytes a second."""
        return self.read / memory, self.sent / link


def rank_cost(
    config: ModelConfig, ranks: int, kind: str, batch: int, context: int, activation: str, kept: str
) -> RankCost:
    """The costs of rank 0, which has the most, in a decode step of `batch` sequences that attend to `context` tokens.

    kind: of the matrices, a type of `cost.WEIGHT_BITS`; activation: of the cache; kept: of embedding and norms. ConfigError
    where the model cannot be split over so many ranks.
    """
    share = Share(0, ranks)
    share.check(config)
    kinds = {names.HEAD: kept} if config.tie_word_embeddings else {}  # a copy of the embedding's rows, never quantised
    weights = sum(
        cost.matrix_bytes(*shape, kinds.get(name, kind))
        if len(shape) == 2 and name != names.EMBED
        else prod(shape) * cost.itemsize(kept)
        for name, shape in names.shapes(config, share).items()
    )
    kv = cost.kv_bytes_per_token(share.config(config), cost.itemsize(activation))
    unread = (config.vocab_size - batch) * config.hidden_size * cost.itemsize(kept)
    # o and down of each layer, and the logits, are gathered; the chosen ids go from rank 0 to the others
    parts = 2 * config.num_layers * config.hidden_size + share.head_rows(config)
    sent = (ranks - 1) * batch * (parts * PARTIAL + cost.TOKEN)
    exchanges = 2 * config.num_layers + 2 if ranks > 1 else 0
    return RankCost(weights, kv, weights - max(0, unread) + batch * context * kv, exchanges, sent)
