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
from baize_engine.model.share import Share

# matrices whose rows are joined, so that one product reads them; never in a published file
QKV, GATE_UP = "self_attn.qkv_proj", "mlp.gate_up_proj"
JOINED = {QKV: (Q, K, V), GATE_UP: (GATE, UP)}
# matrices whose columns are split over the ranks of a tensor-parallel run; of all others but embedding and norms, rows are
BY_COLUMNS = (f".{O}{WEIGHT}", f".{DOWN}{WEIGHT}")
# matrices whose rows, or columns, are the intermediate columns
INTERMEDIATE = (f".{GATE}{WEIGHT}", f".{UP}{WEIGHT}", f".{DOWN}{WEIGHT}")
# in a saved quantised model, in place of .weight: the tensors of a matrix (kernels/quantized.py), int8 has no factors
STORED = (".qweight", ".scales", ".factors")


def shapes(config: ModelConfig, share: Share | None = None) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor that a model of this config needs; no output head if that is tied.

    share: the tensors of a rank of a tensor-parallel run, always with an output head; the matrices of its segments of o and
    down are stacked along their rows.
    """
    own, segments = (config, 1) if share is None else (share.config(config), share.segments)
    hidden, inner = own.hidden_size, own.intermediate_size
    q, kv = own.num_heads * own.head_dim, own.num_kv_heads * own.head_dim
    parts = {
        ATTENTION_NORM: (hidden,), Q: (q, hidden), K: (kv, hidden), V: (kv, hidden), O: (segments * hidden, q // segments),
        MLP_NORM: (hidden,), GATE: (inner, hidden), UP: (inner, hidden), DOWN: (segments * hidden, inner // segments),
    }  # fmt: skip
    wanted: dict[str, tuple[int, ...]] = {EMBED: (config.vocab_size, hidden), NORM: (hidden,)}
    for number in range(config.num_layers):
        wanted.update({layer(number, part): shape for part, shape in parts.items()})
    if share is not None:
        wanted[HEAD] = (share.head_rows(config), hidden)
    elif not config.tie_word_embeddings:
        wanted[HEAD] = (config.vocab_size, hidden)
    return wanted


def packed(config: ModelConfig, share: Share | None = None) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the tensors of a model, or of a rank's share, whose q, k, v and gate, up are joined."""
    shapes_ = shapes(config, share)
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
