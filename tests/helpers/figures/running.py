"""Figures of docs/running.md: what a model of LLaMA's shapes needs, computed from the shape, and a read speed."""

from __future__ import annotations

from collections.abc import Iterator

from shapes import PRESETS

from baize_engine.model import cost
from baize_engine.model.config import ModelConfig
from figures.performance_engine import KINDS, ZEN5, decoded
from figures.written import cells

CONTEXT = 128  # tokens, as in `baize info`
ROOM = 2048  # tokens of the cache


def config(preset: str) -> ModelConfig:
    shape = PRESETS[preset]
    return ModelConfig.from_dict(shape.config(shape.vocabulary, "float16"))


def weights(preset: str, kind: str) -> float:
    """GB in memory on a CPU."""
    return cost.weight_bytes(config(preset), kind, "float32", "float16") / 1e9


def token(preset: str) -> float:
    """MB of a token in a cache of float32."""
    return cost.kv_bytes_per_token(config(preset), 4) / 1e6


def read_speed() -> float:
    """Bytes a second that memory gave on Zen 5."""
    return decoded(ZEN5, "int8", 1)["read_GB/s"] * 1e9


def bound(preset: str, kind: str) -> float:
    """Tokens a second at most, at batch 1."""
    costs = cost.decode_step(config(preset), kind, 1, CONTEXT, "float32", "float16")
    return cost.ceiling_tokens_per_second(costs, 1, read_speed())


def claims() -> Iterator[str]:
    yield f"for memory that gives {read_speed() / 1e9:.0f} GB/s"
    for preset in ("7b", "13b"):
        sizes = [f"{weights(preset, kind):.1f} GB" for kind in KINDS]
        bounds = [f"{bound(preset, kind):.1f} tok/s" for kind in KINDS]
        yield cells(preset.upper(), *sizes, f"{token(preset):.2f} MB", *bounds)
    shares = [decoded(ZEN5, kind, 1)["share"] for kind in KINDS]
    yield f"[{100 * min(shares):.0f} to {100 * max(shares):.0f} %]"


STATED = {
    f"{4 + 8 / cost.INT4_BLOCK} bits a weight": "four bits, and a byte for each block of columns",
    f"needs about {weights('13b', 'int8') + ROOM * token('13b') / 1e3:.0f} GB": "weights and cache, from the shape",
}
