"""The bytes that each op of a step must move and its floating-point operations, from the config alone.

A lower bound that assumes caches of any size: within a step every weight is read once, every activation goes to memory
between ops, and attention reads each cached row once per sequence. Operations are those of matrix products and attention,
two per multiply-add; norms, rotary embeddings, SwiGLU and softmax are less than a hundredth of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from baize_engine.model import names
from baize_engine.model.config import ModelConfig

WEIGHT_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "int4": 4}
INT4_BLOCK = 32  # columns that share a scale of a byte; as in kernels/quantized.py, which imports torch
LOGIT, TOKEN = 4, 8  # bytes: logits are float32, chosen ids int64


@dataclass(frozen=True)
class OpCost:
    """The cost of all calls of one op in a step: floating-point operations, and bytes read and written."""

    name: str
    flops: int
    read: int
    written: int

    @property
    def bytes(self) -> int:
        return self.read + self.written


def itemsize(kind: str) -> int:
    """Bytes of one value of the float type `kind`. ValueError for any other type."""
    if WEIGHT_BITS.get(kind, 0) < 16:
        raise ValueError(f"kind is {kind!r}, wanted float32, float16 or bfloat16")
    return WEIGHT_BITS[kind] // 8


def matrix_bytes(rows: int, columns: int, kind: str) -> int:
    """Bytes of a matrix (rows, columns), with its scales; without what pads int4 rows to whole panels."""
    if kind == "int8":
        return rows * (columns + 4)  # a float32 scale per row
    if kind == "int4":
        blocks = -(-columns // INT4_BLOCK)
        return rows * (blocks * (INT4_BLOCK // 2 + 1) + 4)  # a byte per block and a float32 per row are scales
    return rows * columns * itemsize(kind)


def parameters(config: ModelConfig) -> int:
    """Number of weights, a tied head counted once."""
    return sum(prod(shape) for shape in names.shapes(config).values())


def weight_bytes(config: ModelConfig, kind: str, activation: str = "float16", kept: str | None = None) -> int:
    """Bytes of all weights in memory, with the matrices stored as `kind`.

    Embedding and norms have type `kept`: by default `kind` if that is a float type, else `activation`.
    """
    kept = _kept(kind, activation, kept)
    return sum(
        matrix_bytes(*shape, kind) if len(shape) == 2 and name != names.EMBED else prod(shape) * itemsize(kept)
        for name, shape in names.shapes(config).items()
    )


def step_bytes_weights(config: ModelConfig, kind: str, activation: str = "float16", kept: str | None = None) -> int:
    """Bytes of weights that a decode step reads at batch 1: all, but only one row of an embedding that is not the head."""
    unread = 0 if config.tie_word_embeddings else config.vocab_size - 1
    table = unread * config.hidden_size * itemsize(_kept(kind, activation, kept))
    return weight_bytes(config, kind, activation, kept) - table


def kv_bytes_per_token(config: ModelConfig, activation_itemsize: int = 2) -> int:
    """Bytes of one token in the KV cache: a key and a value in every layer."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * activation_itemsize


def decode_step(
    config: ModelConfig, kind: str, batch: int, context: int, activation: str = "float16", kept: str | None = None
) -> list[OpCost]:
    """The ops that compute one new token for each of `batch` sequences, attending to `context` tokens, itself included."""
    _check_positive(batch=batch, context=context)
    return _costs(config, kind, activation, kept, batch, batch, batch * context, batch * context)


def prefill(
    config: ModelConfig, tokens: int, kind: str, activation: str = "float16", kept: str | None = None
) -> list[OpCost]:
    """The ops that compute one prompt of `tokens` tokens in one piece on an empty cache, with logits of the last token only."""
    _check_positive(tokens=tokens)
    return _costs(config, kind, activation, kept, tokens, 1, tokens * (tokens + 1) // 2, tokens)


def ceiling_tokens_per_second(costs: Sequence[OpCost], batch: int, bandwidth_bytes_per_s: float) -> float:
    """Tokens per second of decode steps that cost `costs` and take only the time to move their bytes."""
    return batch * bandwidth_bytes_per_s / sum(cost.bytes for cost in costs)


def _costs(
    config: ModelConfig, kind: str, activation: str, kept: str | None, rows: int, last: int, pairs: int, cached: int
) -> list[OpCost]:
    """The ops over `rows` tokens, `last` of them with logits: `pairs` (query, key) pairs, `cached` rows of K and V read."""
    layers, hidden, inner, vocab = config.num_layers, config.hidden_size, config.intermediate_size, config.vocab_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    size, own = itemsize(activation), itemsize(_kept(kind, activation, kept))
    head = vocab * hidden * own if config.tie_word_embeddings else matrix_bytes(vocab, hidden, kind)
    norm = hidden * own

    def product(name: str, shape: tuple[int, int], weights: int, values_in: int, values_out: int) -> OpCost:
        """One product in every layer. `weights`: bytes of weights besides the matrix; `values_in`, `values_out`: per token."""
        read = matrix_bytes(*shape, kind) + weights + rows * values_in * size
        return OpCost(name, layers * 2 * rows * prod(shape), layers * read, layers * rows * values_out * size)

    return [
        OpCost("embed", 0, rows * hidden * own, rows * hidden * size),
        product("qkv_rope_store", (q + 2 * kv, hidden), norm, hidden, q + 2 * kv),
        OpCost(
            "attention",
            layers * 4 * pairs * q,
            layers * (rows * q + 2 * cached * kv) * size,
            layers * rows * q * size,
        ),
        product("linear_add o", (hidden, q), 0, q + hidden, hidden),
        product("gate_up", (2 * inner, hidden), norm, hidden, inner),
        product("linear_add down", (hidden, inner), 0, inner + hidden, hidden),
        OpCost("head", 2 * last * vocab * hidden, head + norm + last * hidden * size, last * vocab * LOGIT),
        OpCost("sample", 0, last * vocab * LOGIT, last * TOKEN),
    ]


def _kept(kind: str, activation: str, kept: str | None) -> str:
    if kind not in WEIGHT_BITS:
        raise ValueError(f"kind is {kind!r}, wanted one of {', '.join(WEIGHT_BITS)}")
    return kept or (kind if WEIGHT_BITS[kind] >= 16 else activation)


def _check_positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}, wanted at least 1")
