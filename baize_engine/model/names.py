"""The one table of tensor names: transformers' LLaMA names, with their shapes by config."""

from __future__ import annotations

from baize_engine.model.config import ModelConfig

EMBED = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"
IGNORED_SUFFIX = ".rotary_emb.inv_freq"  # in files of early 2023; frequencies follow from the config

ATTENTION_NORM = "input_layernorm"
MLP_NORM = "post_attention_layernorm"
Q, K, V, O = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"  # noqa: E741
GATE, UP, DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"


def layer(number: int, part: str) -> str:
    """The name of a layer's weight, such as layer(3, Q)."""
    return f"model.layers.{number}.{part}.weight"


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model of this config needs, and its shape; without the output head where it is tied."""
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
