"""The presets' model shapes and their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A LLaMA with as many key/value heads as heads and its own output head, as those of early 2023."""

    layers: int
    heads: int
    hidden: int
    intermediate: int
    vocabulary: int = 32000
    positions: int = 2048
    base_shards: int = 3  # files of the base and of the diff; their boundaries differ
    diff_shards: int = 4

    def tensors(self, vocabulary: int | None = None) -> dict[str, tuple[int, ...]]:
        """Every weight by transformers' name, in the order of the layers."""
        rows, h, i = vocabulary or self.vocabulary, self.hidden, self.intermediate
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, h)}
        for n in range(self.layers):
            layer = f"model.layers.{n}."
            for part in "qkvo":
                found[f"{layer}self_attn.{part}_proj.weight"] = (h, h)
            found |= {f"{layer}mlp.gate_proj.weight": (i, h), f"{layer}mlp.up_proj.weight": (i, h)}
            found |= {f"{layer}mlp.down_proj.weight": (h, i)}
            found |= {f"{layer}input_layernorm.weight": (h,), f"{layer}post_attention_layernorm.weight": (h,)}
        return found | {"model.norm.weight": (h,), "lm_head.weight": (rows, h)}

    @property
    def parameters(self) -> int:
        h, i = self.hidden, self.intermediate
        return 2 * self.vocabulary * h + h + self.layers * (4 * h * h + 3 * h * i + 2 * h)

    def decode_bytes(self, itemsize: int) -> int:
        """Weight bytes that a decode step must read: all but the embedding, of which it reads a row."""
        return (self.parameters - self.vocabulary * self.hidden) * itemsize

    def config(self, vocabulary: int, dtype: str) -> dict[str, object]:
        """config.json in the spelling of transformers 4.29."""
        return {
            "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
            "hidden_size": self.hidden, "initializer_range": 0.02, "intermediate_size": self.intermediate,
            "max_position_embeddings": self.positions, "model_type": "llama", "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers, "pad_token_id": 0, "rms_norm_eps": 1e-06, "tie_word_embeddings": False,
            "torch_dtype": dtype, "transformers_version": "4.29.2", "use_cache": True, "vocab_size": vocabulary,
        }  # fmt: skip


PRESETS = {
    "tiny": Shape(
        layers=2, heads=4, hidden=64, intermediate=176, vocabulary=1000, positions=256, base_shards=2, diff_shards=3
    ),
    "125m": Shape(layers=12, heads=12, hidden=768, intermediate=2048),
    "1b": Shape(layers=22, heads=32, hidden=2048, intermediate=5632),
    "7b": Shape(layers=32, heads=32, hidden=4096, intermediate=11008, base_shards=2, diff_shards=3),
    "13b": Shape(layers=40, heads=40, hidden=5120, intermediate=13824, base_shards=3, diff_shards=6),
    "30b": Shape(layers=60, heads=52, hidden=6656, intermediate=17920, base_shards=7, diff_shards=7),
    "65b": Shape(layers=80, heads=64, hidden=8192, intermediate=22016, base_shards=14, diff_shards=14),
}


def preset_of(config: Mapping[str, object]) -> str:
    """The preset that a base's config.json describes, so that a report names the pair it measured; else "other"."""
    for name, shape in PRESETS.items():
        wanted = shape.config(shape.vocabulary, "float16")
        if all(config.get(key) == wanted[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")):
            return name
    return "other"
