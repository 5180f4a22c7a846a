"""Tensor names of transformers' LLaMA, which published checkpoints and this project's results use. Knows no shapes."""

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


def layer(number: int, part: str) -> str:
    """The name of a layer's weight, such as layer(3, Q)."""
    return f"{LAYER}{number}.{part}{WEIGHT}"


def count_layers(names: Iterable[str]) -> int:
    """The number of layers of a model with tensors of these names."""
    return sum(name.endswith(f".{ATTENTION_NORM}{WEIGHT}") for name in names)
