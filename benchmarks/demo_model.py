"""The demo pair's model in training form: weights under transformers' names, math as in transformers' LlamaForCausalLM.

Knows no text and no files.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN, LAYERS, HEADS, INNER, VOCAB, POSITIONS = 128, 4, 4, 352, 1024, 512
THETA, EPS = 10000.0, 1e-6
NOTHING = -100  # a target that carries no loss


def initial(generator: torch.Generator) -> dict[str, Tensor]:
    """Embeddings large and the outputs of layers small: copying is learnt within 200 steps then, and else not within 300."""

    def normal(*shape: int, spread: float = 0.05) -> Tensor:
        return torch.randn(*shape, generator=generator) * spread

    weights = {"model.embed_tokens.weight": normal(VOCAB, HIDDEN, spread=0.5)}
    for n in range(LAYERS):
        for part in "qkv":
            weights[f"model.layers.{n}.self_attn.{part}_proj.weight"] = normal(HIDDEN, HIDDEN)
        weights[f"model.layers.{n}.self_attn.o_proj.weight"] = normal(HIDDEN, HIDDEN, spread=0.02)
        for part in ("gate", "up"):
            weights[f"model.layers.{n}.mlp.{part}_proj.weight"] = normal(INNER, HIDDEN)
        weights[f"model.layers.{n}.mlp.down_proj.weight"] = normal(HIDDEN, INNER, spread=0.02)
        for part in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{n}.{part}.weight"] = torch.ones(HIDDEN)
    weights["model.norm.weight"] = torch.ones(HIDDEN)
    weights["lm_head.weight"] = normal(VOCAB, HIDDEN)
    return weights


def inv_freq() -> Tensor:
    dim = HIDDEN // HEADS
    return 1.0 / THETA ** (torch.arange(0, dim, 2).float() / dim)


def logits(weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """(B, T) ids -> (B, T, V)."""
    batch, length = ids.shape
    angles = torch.arange(length).float()[:, None] * inv_freq()[None]
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (HIDDEN,), weights[name + ".weight"], EPS)

    def heads(x: Tensor) -> Tensor:
        return x.view(batch, length, HEADS, -1).transpose(1, 2)

    def rotate(x: Tensor) -> Tensor:
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin

    x = weights["model.embed_tokens.weight"][ids]
    for n in range(LAYERS):
        layer = f"model.layers.{n}."
        h = norm(x, layer + "input_layernorm")
        q, k, v = (heads(h @ weights[f"{layer}self_attn.{p}_proj.weight"].T) for p in "qkv")
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + mixed.transpose(1, 2).flatten(2) @ weights[layer + "self_attn.o_proj.weight"].T
        h = norm(x, layer + "post_attention_layernorm")
        gate, up = (h @ weights[f"{layer}mlp.{p}_proj.weight"].T for p in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ weights[layer + "mlp.down_proj.weight"].T
    return norm(x, "model.norm") @ weights["lm_head.weight"].T


def train(
    weights: dict[str, Tensor], batches: Iterator[tuple[Tensor, Tensor]], steps: int, rate: float, norms: bool = True
) -> None:
    """AdamW with warm-up and cosine decay; bfloat16 products; a target of NOTHING carries no loss.

    norms: whether the norms are trained, too.
    """
    trained = [tensor for tensor in weights.values() if norms or tensor.dim() > 1]
    for tensor in trained:
        tensor.requires_grad_(True)
    optimiser = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    begin = time.monotonic()
    for step in range(steps):
        ids, targets = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            found = logits(weights, ids)
        loss = F.cross_entropy(found.float().flatten(0, 1), targets.flatten(), ignore_index=NOTHING)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        plan.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"  step {step:5d}  loss {loss.item():.4f}  {time.monotonic() - begin:.0f} s", flush=True)
    for tensor in trained:
        tensor.requires_grad_(False)
