"""Tensor names of transformers' LLaMA, which published checkpoints and this project's results use, and of what is no weight."""

from __future__ import annotations

from collections.abc import Iterable

EMBED = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"

# parts of a layer
Q, K, V, O = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"  # noqa: E741
GATE, UP, DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
ATTENTION_NORM, MLP_NORM = "input_layernorm", "post_attention_layernorm"

LAYER = "model.layers."
WEIGHT = ".weight"

# not weights: buffers that every reader computes from the config
INV_FREQ = ".rotary_emb.inv_freq"  # in a diff about zero; transformers stored it until 4.31
_RECOMPUTED = (INV_FREQ, ".rotary_emb.cos_cached", ".rotary_emb.sin_cached", ".position_ids", ".masked_bias",
               ".causal_mask", ".attention_mask", ".attn_mask")  # fmt: skip


def layer(number: int, part: str) -> str:
    """The name of a layer's weight, such as layer(3, Q)."""
    return f"{LAYER}{number}.{part}{WEIGHT}"


def count_layers(names: Iterable[str]) -> int:
    """The number of layers of a model with tensors of these names."""
    return sum(name.endswith(f".{ATTENTION_NORM}{WEIGHT}") for name in names)


def is_recomputed(name: str) -> bool:
    """Whether the tensor `name` is a recomputed buffer, whatever its prefix. Its copy in a file is not read."""
    return f".{name}".endswith(_RECOMPUTED)
