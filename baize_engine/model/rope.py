"""Rotary position tables from the config: float32 cos and sin, computed in float64. Never from a checkpoint's inv_freq."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from baize_engine.model.config import ModelConfig


def tables(config: ModelConfig, positions: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """(cos, sin) of the angles at the first `positions` positions, each (positions, head_dim / 2) float32."""
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies(config)[None, :]
    return angles.cos().float().to(device), angles.sin().float().to(device)


def frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each pair of a head's elements, (head_dim / 2,) float64.

    "linear" divides all frequencies by `factor`. "llama3" (transformers, modeling_rope_utils.py) divides those with a
    wavelength above original / low_freq_factor, keeps those below original / high_freq_factor and blends between.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    base = config.rope_theta**-exponents
    rope = config.rope
    if config.rope_type == "linear":
        return base / rope["factor"]
    if config.rope_type == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        original = rope["original_max_position_embeddings"]
        turns = original * base / (2 * math.pi)  # full turns within the original context
        kept = ((turns - low) / (high - low)).clamp(0, 1)  # 0: all divided, 1: all kept
        return kept * base + (1 - kept) * base / rope["factor"]
    return base
