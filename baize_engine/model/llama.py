"""LLaMA: its weights, and its layers as ops of a plan. The model, to be read in one sitting.

Holds no run state: prompt_runner.py and step_state.py have the buffers, plans and graphs, kv_cache.py the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from baize_engine.backend.choose import Ops
from baize_engine.backend.plan_ops import Attention, Embed, GateUp, Head, LinearAdd, PlanOp, QkvRopeStore
from baize_engine.model import names
from baize_engine.model.buffers import Activations, Inputs
from baize_engine.model.config import ModelConfig
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.rope import tables

if TYPE_CHECKING:
    from baize_engine.kernels.quantized import Weight


@dataclass(frozen=True, eq=False)
class Layer:
    """The weights of one layer. `qkv` and `gate_up`: the joined matrix, or the matrices that would be joined."""

    attention_norm: Tensor
    qkv: tuple[Weight, ...]
    o: Weight
    mlp_norm: Tensor
    gate_up: tuple[Weight, ...]
    down: Weight


@dataclass(frozen=True, eq=False)
class Llama:
    """A LLaMA of `config` over `weights`, {transformers' name: tensor or quantised matrix on `device`}, with a backend's ops.

    q, k, v and gate, up are each apart or joined (names.JOINED). Activations are float32 on the CPU and the embedding's type
    on a GPU, unless `activation` says otherwise. Where tokens of a prompt meet quantised weights, a backend may round
    activations to 8 bits unless `exact_activations`; decode steps never do.
    """

    config: ModelConfig
    weights: Mapping[str, Weight]
    ops: Ops
    device: str = "cpu"
    activation: torch.dtype | None = None
    exact_activations: bool = False

    def embed_op(self, work: Activations, inputs: Inputs) -> PlanOp:
        """Token ids to the residual stream work.x."""
        return Embed(inputs.ids, self._embedding, out=work.x)

    def layer_ops(
        self, number: int, work: Activations, inputs: Inputs, cache: KVCache, *, batch_invariant: bool, prompt: bool
    ) -> list[PlanOp]:
        """One layer over work.x, its keys and values written to the cache before attention reads them."""
        layer, eps, (cos, sin), at = self.layers[number], self.config.rms_norm_eps, self.rope, inputs
        keys, values, scale = cache.keys[number], cache.values[number], self.config.head_dim**-0.5
        how = {"batch_invariant": batch_invariant, "int8_activations": prompt and not self.exact_activations}
        return [
            QkvRopeStore(
                work.x, layer.attention_norm, eps, layer.qkv, cos, sin, at.positions, keys, values, at.slots, q=work.q, **how
            ),
            Attention(
                work.q, keys, values, at.block_tables, at.query_starts, at.context_lens, scale, out=work.mixed,
                max_context=at.max_context,
            ),
            LinearAdd(work.mixed.flatten(1), layer.o, out=work.x, **how),
            GateUp(work.x, layer.mlp_norm, eps, layer.gate_up, out=work.inner, **how),
            LinearAdd(work.inner, layer.down, out=work.x, **how),
        ]  # fmt: skip

    def head_op(self, hidden: Tensor, logits: Tensor, *, batch_invariant: bool, best: Tensor | None = None) -> PlanOp:
        """Hidden states (T, H) to `logits` (T, V) float32; `best` as in kernels/reference.py."""
        eps = self.config.rms_norm_eps
        return Head(hidden, self.norm, eps, self.head, out=logits, batch_invariant=batch_invariant, best=best)

    def hidden_ops(
        self, work: Activations, inputs: Inputs, cache: KVCache, *, batch_invariant: bool, prompt: bool = False
    ) -> list[PlanOp]:
        """All ops from token ids to the hidden states work.x, before the last norm.

        `batch_invariant`: each row's bits are the same whatever rows are beside it. `prompt`: the tokens may be computed as
        prompts are (see the class).
        """
        plan = [self.embed_op(work, inputs)]
        for number in range(self.config.num_layers):
            plan += self.layer_ops(number, work, inputs, cache, batch_invariant=batch_invariant, prompt=prompt)
        return plan

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        embedding = self._embedding
        return self.activation or (torch.float32 if embedding.device.type == "cpu" else embedding.dtype)

    @property
    def head(self) -> Weight:
        """The output matrix (V, H)."""
        return self._embedding if self.config.tie_word_embeddings else self.weights[names.HEAD]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The weights of each layer, norms in the type of activations."""
        return tuple(
            Layer(
                attention_norm=self._vector(names.layer(number, names.ATTENTION_NORM)),
                qkv=self._joined(number, names.QKV),
                o=self.weights[names.layer(number, names.O)],
                mlp_norm=self._vector(names.layer(number, names.MLP_NORM)),
                gate_up=self._joined(number, names.GATE_UP),
                down=self.weights[names.layer(number, names.DOWN)],
            )
            for number in range(self.config.num_layers)
        )

    @cached_property
    def rope(self) -> tuple[Tensor, Tensor]:
        """cos and sin of every position, (positions, D / 2) float32."""
        return tables(self.config, self.config.max_position_embeddings, self.device)

    @cached_property
    def norm(self) -> Tensor:
        """The last norm (H,), in the type of activations."""
        return self._vector(names.NORM)

    @property
    def _embedding(self) -> Tensor:
        return tensor(self.weights[names.EMBED])

    def _vector(self, name: str) -> Tensor:
        return tensor(self.weights[name]).to(self.dtype)

    def _joined(self, number: int, part: str) -> tuple[Weight, ...]:
        whole = self.weights.get(names.layer(number, part))
        parts = names.JOINED[part]
        return (whole,) if whole is not None else tuple(self.weights[names.layer(number, each)] for each in parts)


def tensor(weight: Weight) -> Tensor:
    """`weight`, which is never quantised: an embedding or a norm."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"a {type(weight).__name__} where embeddings and norms are plain tensors")
    return weight
