"""The model: LLaMA's weights, and its layers as ops of a plan.

Holds no run state: prompt_runner.py and step_state.py own the buffers, plans and graphs, kv_cache.py the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from baize_engine.backend.choose import Ops
from baize_engine.backend.plan_ops import (
    AddSums,
    Attention,
    Embed,
    GateUp,
    Head,
    HostCall,
    LinearAdd,
    PlanOp,
    QkvRopeStore,
    Sample,
    SegmentSums,
)
from baize_engine.kernels.quantized import Int4Weight, Weight
from baize_engine.model import names
from baize_engine.model.buffers import Activations, Exchanged, Inputs
from baize_engine.model.config import ModelConfig
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.mirrored import Channel
from baize_engine.model.rope import tables
from baize_engine.model.share import Share


@dataclass(frozen=True, eq=False)
class Layer:
    """The weights of one layer. `qkv` and `gate_up` hold one joined matrix, or the separate ones in order."""

    attention_norm: Tensor
    qkv: tuple[Weight, ...]
    o: Weight
    mlp_norm: Tensor
    gate_up: tuple[Weight, ...]
    down: Weight


class Group(Protocol):
    """The ranks that hold a model together. Their calls are the same ones in the same order."""

    @property
    def rank(self) -> int: ...

    def all_gather(self, part: Tensor, out: Tensor) -> None:
        """Writes the `part` of each rank, in order, to `out` (R, *part.shape)."""

    def broadcast(self, tensor: Tensor) -> None:
        """Copies rank 0's `tensor` to those of the others."""


@dataclass(frozen=True, eq=False)
class Llama:
    """A LLaMA: its config, its weights, and the backend's ops that compute it. Read-only once made.

    weights: {transformers' name: tensor or quantised matrix}, on `device`. q, k, v and gate, up are separate or joined
    (names.JOINED), as `load_weights` returns them.
    ops: the decoder's ops on `device` (backend/choose.py).
    activation: type of the activations. Default: float32 on the CPU, the embedding's type on a GPU.
    exact_activations: if false, a backend may round activations to 8 bits where they meet int4 weights, and those of prompts
    where they meet int8 weights. The output matrix always meets more.
    share: the part of a model that this is, whose sizes are then those of `config` (Share.config); its products with o and down
    are sums of segments. group: the ranks that hold the rest, if it is not the whole. channel: on rank 0, the way of calls to
    the others (model/mirrored.py).
    """

    config: ModelConfig
    weights: Mapping[str, Weight]
    ops: Ops
    device: str = "cpu"
    activation: torch.dtype | None = None
    exact_activations: bool = False
    share: Share | None = None
    group: Group | None = None
    channel: Channel | None = None

    def embed_op(self, work: Activations, inputs: Inputs) -> PlanOp:
        """The op that looks up the embeddings of inputs.ids and writes them to the residual stream work.x."""
        return Embed(inputs.ids, self._embedding, out=work.x)

    def layer_ops(
        self, number: int, work: Activations, inputs: Inputs, cache: KVCache, *, batch_invariant: bool, prompt: bool
    ) -> list[PlanOp]:
        """The ops of layer `number`: they update work.x, and write keys and values to the cache before attention reads it."""
        layer, eps, (cos, sin), at = self.layers[number], self.config.rms_norm_eps, self.rope, inputs
        keys, values, scale = cache.keys[number], cache.values[number], self.config.head_dim**-0.5
        units = None if self.share is None else self.share.units(self.config)
        inner_units = None if self.share is None else self.share.segments

        def how(weight: Weight) -> dict[str, bool]:
            rounded = not self.exact_activations and (prompt or isinstance(weight, Int4Weight))
            return {"batch_invariant": batch_invariant, "int8_activations": rounded}

        def add_product(x: Tensor, weight: Weight) -> list[PlanOp]:
            """work.x += x times `weight`, whose columns ranks may share."""
            if self.share is None or work.sums is None:
                return [LinearAdd(x, weight, out=work.x, **how(weight))]
            sums = work.sums
            return [
                SegmentSums(x, weight, segments=self.share.segments, out=sums.own, **how(weight)),
                *self._gathered(sums),
                AddSums(sums.all, out=work.x),
            ]

        return [
            QkvRopeStore(
                work.x, layer.attention_norm, eps, layer.qkv, cos, sin, at.positions, keys, values, at.slots, q=work.q,
                units=units, **how(layer.qkv[0]),
            ),
            Attention(
                work.q, keys, values, at.block_tables, at.query_starts, at.context_lens, scale, out=work.mixed,
                max_context=at.max_context,
            ),
            *add_product(work.mixed.flatten(1), layer.o),
            GateUp(
                work.x, layer.mlp_norm, eps, layer.gate_up, out=work.inner, units=inner_units, **how(layer.gate_up[0])
            ),
            *add_product(work.inner, layer.down),
        ]  # fmt: skip

    def head_ops(
        self,
        hidden: Tensor,
        logits: Tensor,
        *,
        batch_invariant: bool,
        best: Tensor | None = None,
        parts: Exchanged | None = None,
    ) -> list[PlanOp]:
        """The ops from hidden states (T, H) to `logits` (T, V) float32, on rank 0 only; `best` as in kernels/reference.py.

        parts: memory for what ranks compute of the logits (`logit_parts`). Default: allocated where needed. A model that is
        split does not write `best`.
        """
        eps = self.config.rms_norm_eps
        parts = parts or self.logit_parts(logits.shape[0])
        if self.share is None or parts is None:
            return [Head(hidden, self.norm, eps, self.head, out=logits, batch_invariant=batch_invariant, best=best)]
        ops: list[PlanOp] = [
            Head(
                hidden,
                self.norm,
                eps,
                self.head,
                out=parts.own,
                units=self.share.segments,
                batch_invariant=batch_invariant,
            ),
            *self._gathered(parts),
        ]
        if self.chooses:
            ops.append(HostCall(join_columns, (parts.all, logits)))
        return ops

    def choice_ops(self, sample: Sample) -> list[PlanOp]:
        """The ops after `head_ops` that leave the chosen tokens in sample.out: chosen on rank 0, copied to the others."""
        if self.share is None:
            return [sample]
        choice: list[PlanOp] = [replace(sample, best=None)] if self.chooses else []
        if self.group is not None and sample.out is not None:
            choice.append(HostCall(self.group.broadcast, (sample.out,)))
        return choice

    @property
    def chooses(self) -> bool:
        """Whether the tokens are chosen here: on rank 0."""
        return self.group is None or self.group.rank == 0

    def activations(self, tokens: int) -> Activations:
        """Uninitialised buffers of the layers for `tokens` tokens."""
        ranks = None if self.share is None else self.share.ranks
        return Activations.of(self.config, tokens, self.dtype, self.device, ranks)

    def logit_parts(self, tokens: int) -> Exchanged | None:
        """Memory for the ranks' parts of the logits of `tokens` tokens; None if there are none."""
        if self.share is None:
            return None
        return Exchanged.of(self.share.ranks, tokens, self.share.head_rows(self.config), self.device)

    def _gathered(self, exchanged: Exchanged) -> list[PlanOp]:
        """The exchange, if there is another rank."""
        if self.group is None:
            return []
        return [HostCall(self.group.all_gather, (exchanged.own, exchanged.all))]

    def hidden_ops(
        self, work: Activations, inputs: Inputs, cache: KVCache, *, batch_invariant: bool, prompt: bool = False
    ) -> list[PlanOp]:
        """All ops from token ids to the hidden states work.x, before the final norm.

        batch_invariant: a row's bits do not depend on the other rows.
        prompt: the tokens belong to a prompt, so that more activations may be rounded (see the class).
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
        """The output matrix (V, H), or the rows of it that `share` says."""
        tied = self.config.tie_word_embeddings and self.share is None
        return self._embedding if tied else self.weights[names.HEAD]

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
        """The final norm (H,), in the type of activations."""
        return self._vector(names.NORM)

    @property
    def _embedding(self) -> Tensor:
        return tensor(self.weights[names.EMBED])

    def _vector(self, name: str) -> Tensor:
        return tensor(self.weights[name]).to(self.dtype)

    def _joined(self, number: int, part: str) -> tuple[Weight, ...]:
        joined = self.weights.get(names.layer(number, part))
        parts = names.JOINED[part]
        return (joined,) if joined is not None else tuple(self.weights[names.layer(number, name)] for name in parts)


def join_columns(parts: Tensor, out: Tensor) -> None:
    """Writes parts (R, T, N) side by side to `out` (T, V), V at most R * N: what is beyond is left out."""
    width, columns = parts.shape[2], out.shape[1]
    for rank, part in enumerate(parts):
        begin = rank * width
        if begin < columns:
            out[:, begin : begin + width].copy_(part[:, : columns - begin])


def tensor(weight: Weight) -> Tensor:
    """`weight` as a tensor. TypeError if it is quantised, which embeddings and norms never are."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"a {type(weight).__name__} where embeddings and norms are plain tensors")
    return weight
