"""The tensors of a model: transformers' LLaMA names (`checkpoint/names.py`), and the shapes that a config gives them."""

from __future__ import annotations

from baize_engine.checkpoint.names import (
    ATTENTION_NORM,
    DOWN,
    EMBED,
    GATE,
    HEAD,
    MLP_NORM,
    NORM,
    UP,
    WEIGHT,
    K,
    O,
    Q,
    V,
    layer,
)
from baize_engine.model.config import ModelConfig

# matrices whose rows are joined, so that one product reads them; never in a published file
QKV, GATE_UP = "self_attn.qkv_proj", "mlp.gate_up_proj"
JOINED = {QKV: (Q, K, V), GATE_UP: (GATE, UP)}
# in a saved quantised model, in place of .weight: the tensors of a matrix (kernels/quantized.py), int8 has no factors
STORED = (".qweight", ".scales", ".factors")


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor that a model of this config needs; no output head if that is tied."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    parts = {
        ATTENTION_NORM: (hidden,), Q: (q, hidden), K: (kv, hidden), V: (kv, hidden), O: (hidden, q),
        MLP_NORM: (hidden,), GATE: (inner, hidden), UP: (inner, hidden), DOWN: (hidden, inner),
    }  # fmt: skip
    wanted: dict[str, tuple[int, ...]] = {EMBED: (config.vocab_size, hidden), NORM: (hidden,)}
    for number in range(config.num_layers):
        wanted.update({layer(number, part): shape for part, shape in parts.items()})
    if not config.tie_word_embeddings:
        wanted[HEAD] = (config.vocab_size, hidden)
    return wanted


def packed(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the tensors of a model whose q, k, v and gate, up are joined."""
    shapes_ = shapes(config)
    for number in range(config.num_layers):
        for whole, parts_ in JOINED.items():
            columns = {shapes_[layer(number, part)][1] for part in parts_}
            rows = sum(shapes_.pop(layer(number, part))[0] for part in parts_)
            shapes_[layer(number, whole)] = (rows, *columns)
    return shapes_


def parts(name: str) -> tuple[str, ...]:
    """The published tensors whose rows make up the packed weight `name`, in order."""
    for whole, parts_ in JOINED.items():
        if name.endswith(f".{whole}{WEIGHT}"):
            return tuple(name.replace(whole, part) for part in parts_)
    return (name,)


def quantized(config: ModelConfig) -> frozenset[str]:
    """The packed weights that are quantised: all matrices except the embedding, and so except a tied output head."""
    return frozenset(name for name, shape in packed(config).items() if len(shape) == 2 and name != EMBED)
