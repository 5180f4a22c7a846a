"""Models that are split over ranks, and how their parts are compared. For tests of what ranks load."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
from torch import Tensor

from baize_engine.kernels.quantized import Weight
from baize_engine.model.share import RANKS, Share

# one key head a rank of eight; segments of 16 columns; a vocabulary that no number of ranks divides
PLAIN = tiny.config(hidden_size=128, num_attention_heads=8, num_key_value_heads=8, vocab_size=97, intermediate_size=128)
GROUPED = {**PLAIN, "num_attention_heads": 16, "head_dim": 16, "intermediate_size": 176}  # int4's panels and blocks cut
TIED = {**PLAIN, "tie_word_embeddings": True, "vocab_size": 96}
PADDED = {**GROUPED, "intermediate_size": 172}  # segments of 22 columns, of which the last has 18
FEW = {**PLAIN, "intermediate_size": 58}  # of 8, of which the last has 2
CONFIGS = {"plain": PLAIN, "grouped": GROUPED, "tied": TIED, "padded": PADDED, "few": FEW}
STORABLE = {**GROUPED, "intermediate_size": 512}  # segments of whole blocks
STORED = {"head": STORABLE, "tied": {**STORABLE, "tie_word_embeddings": True}, "padded": PADDED, "few": FEW}


def write(path: Path, cfg: dict, dtype: str = "float16", form: str = "safetensors", shards: int = 2) -> Path:
    kind = getattr(torch, dtype)
    return tiny.write_model(path, cfg, tiny.state(cfg, 0, kind, scale=0.2), form, shards)


def same(got: Weight, wanted: Weight, name: str) -> None:
    assert type(got) is type(wanted), name
    mine, others = ([w] if isinstance(w, Tensor) else w.stored for w in (got, wanted))
    for one, two in zip(mine, others, strict=True):
        assert (one.dtype, one.shape) == (two.dtype, two.shape), name
        assert torch.equal(one, two), name


def all_shares() -> list[Share]:
    return [Share(rank, ranks) for ranks in RANKS for rank in range(ranks)]
