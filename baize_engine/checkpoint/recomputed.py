"""Tensors in checkpoints that are not weights: buffers that every reader computes from the config."""

from __future__ import annotations

INV_FREQ = ".rotary_emb.inv_freq"
_SUFFIXES = (
    INV_FREQ,  # in a diff about zero; transformers stored it until 4.31
    ".rotary_emb.cos_cached",
    ".rotary_emb.sin_cached",
    ".position_ids",
    ".masked_bias",
    ".causal_mask",
    ".attention_mask",
    ".attn_mask",
)


def is_recomputed(name: str) -> bool:
    """Whether the tensor `name` is such a buffer, whatever its prefix. Its copy in a file is not read."""
    return f".{name}".endswith(_SUFFIXES)
