"""Decoders with random weights of any kind, made on the device itself, so that a 13B model needs no file."""

from __future__ import annotations

import gc
from typing import Any

import torch
from shapes import Shape

from baize_engine import SamplingParams
from baize_engine.backend import choose
from baize_engine.generation.block_pool import BlockPool
from baize_engine.generation.sequence import Sequence
from baize_engine.kernels import quantized
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import PromptRunner, new_cache

KINDS = ("float16", "bfloat16", "float32", "int8", "int4")
SPREAD = 0.02  # the standard deviation that LLaMA's initialisation has: logits of a few units, no overflow


def random_model(shape: Shape, kind: str, device: str, seed: int = 0) -> Llama:
    """A decoder with matrices of `kind` (one of KINDS), q, k, v and gate, up joined as the loader joins them for a GPU.

    The same on every call on one device. At most one matrix beside the finished ones is in memory at a time. Embedding and
    norms of int8 and int4 are float16.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, wanted one of {', '.join(KINDS)}")
    kept = "float16" if kind in ("int8", "int4") else kind
    config = ModelConfig.from_dict(shape.config(shape.vocabulary, kept))
    generator, quantize = torch.Generator(device).manual_seed(seed), choose.quantizer(device)
    weights: dict[str, Any] = {}
    for name, dims in names.packed(config).items():
        drawn = torch.empty(dims, dtype=getattr(torch, kept), device=device)
        drawn.normal_(float(name.endswith("norm.weight")), SPREAD, generator=generator)
        coded = kept != kind and name in names.quantized(config)
        weights[name] = quantize(drawn, kind) if coded else drawn
    return Llama(config, weights, choose.ops(device), device)


class Decoder(PromptRunner):
    """A runner over a new cache of `tokens` tokens, or a given one, in which sequences take the blocks that they need."""

    def __init__(self, model: Llama, tokens: int = 0, cache: KVCache | None = None) -> None:
        super().__init__(model, cache or new_cache(model, tokens))
        self.pool = BlockPool(self.cache.num_blocks)

    def sequence(self) -> Sequence:
        return Sequence([], SamplingParams(), 0)

    def prefill(self, ids: list[int], sequence: Sequence) -> torch.Tensor:
        self.pool.reserve(sequence, len(ids))
        return super().prefill(ids, sequence)

    def forward(self, token_ids: list[list[int]], sequences: list[Sequence], **how: bool) -> torch.Tensor:
        for ids, sequence in zip(token_ids, sequences, strict=True):
            self.pool.reserve(sequence, len(ids))
        return super().forward(token_ids, sequences, **how)


def let_go(device: str) -> None:
    """Frees the memory of models that nobody refers to any more, but a circle of references."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def transformers_model(model: Llama, shape: Shape, dtype: torch.dtype) -> Any:
    """transformers' model of the same weights, dequantised where they are, in `dtype` on the same device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    made: Any = LlamaConfig
    config = made(**{key: value for key, value in shape.config(shape.vocabulary, "").items() if key != "torch_dtype"})
    sizes = names.shapes(model.config)
    state: dict[str, torch.Tensor] = {}
    for name, weight in model.weights.items():
        parts = names.parts(name)
        rows = [sizes[part][0] for part in parts]
        state |= zip(parts, quantized.dequantize(weight, dtype).split(rows), strict=True)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(model.device):
            theirs = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    theirs.load_state_dict(state, assign=True)  # the tensors as they are: no second copy
    return theirs
