"""Models split over ranks that are threads of this process: what each holds, and how they meet. For tests."""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import tiny
import torch
from torch.nn.functional import pad

from baize_engine.backend import choose
from baize_engine.generation.loop import MAX_ROWS
from baize_engine.kernels import quantized
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.followers import follow, runners
from baize_engine.model.llama import Llama
from baize_engine.model.mirrored import MirroredCall
from baize_engine.model.prompt_runner import new_cache
from baize_engine.model.share import SEGMENTS, Share


def parts(state: dict[str, torch.Tensor], config: ModelConfig, share: Share) -> dict[str, torch.Tensor]:
    """The tensors of a rank, cut from those of the whole model."""
    rank, ranks, held = share.rank, share.ranks, share.segments
    missing = -config.intermediate_size % SEGMENTS  # intermediate columns, of zeros, that make the segments equal
    made = dict(state)
    if config.tie_word_embeddings:
        made[names.HEAD] = state[names.EMBED]
    for name, tensor in made.items():
        part = name.removesuffix(names.WEIGHT)
        if part.endswith((names.GATE, names.UP)):
            tensor = pad(tensor, (0, 0, 0, missing))
        elif part.endswith(names.DOWN):
            tensor = pad(tensor, (0, missing))
        if part.endswith((names.Q, names.K, names.V, names.GATE, names.UP)):
            rows = tensor.shape[0] // ranks
            made[name] = tensor[rank * rows : (rank + 1) * rows]
        elif part.endswith((names.O, names.DOWN)):
            made[name] = torch.cat(tensor.chunk(SEGMENTS, 1)[rank * held : (rank + 1) * held])
        elif name == names.HEAD:
            rows = share.head_rows(config)
            padding = torch.zeros(rows * ranks - tensor.shape[0], tensor.shape[1], dtype=tensor.dtype)
            made[name] = torch.cat([tensor, padding])[rank * rows : (rank + 1) * rows]
    return {name: tensor.contiguous() for name, tensor in made.items()}


def make(cfg: dict, share: Share, dtype: torch.dtype = torch.float32, quantize: str | None = None) -> Llama:
    """A rank's decoder of the model that `decoders.make` makes."""
    config = ModelConfig.from_dict(cfg)
    weights: dict = parts(tiny.state(cfg, 0, dtype, scale=0.2), config, share)
    if quantize:
        plain = ("norm.weight", names.EMBED)
        weights = {n: w if n.endswith(plain) else quantized.quantize(w, quantize) for n, w in weights.items()}
    return Llama(share.config(config), weights, choose.ops("cpu"), share=share)


@dataclass
class Meeting:
    """Where the threads of `ranks` ranks meet."""

    ranks: int
    barrier: threading.Barrier = field(init=False)
    brought: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.ranks, timeout=60)


@dataclass
class ThreadGroup:
    """The group of one rank (model/llama.py)."""

    rank: int
    meeting: Meeting

    def all_gather(self, part: torch.Tensor, out: torch.Tensor) -> None:
        self._bring(part)
        for rank in range(self.meeting.ranks):
            out[rank].copy_(self.meeting.brought[rank])
        self.meeting.barrier.wait()

    def broadcast(self, tensor: torch.Tensor) -> None:
        self._bring(tensor)
        if self.rank:
            tensor.copy_(self.meeting.brought[0])
        self.meeting.barrier.wait()

    def _bring(self, tensor: torch.Tensor) -> None:
        self.meeting.brought[self.rank] = tensor
        self.meeting.barrier.wait()


def on_ranks(ranks: int, run: Callable[[Share, ThreadGroup | None], Any]) -> list[Any]:
    """What `run` returns on each of so many ranks; one has no group."""
    meeting = Meeting(ranks)
    with ThreadPoolExecutor(ranks) as pool:
        futures = [
            pool.submit(run, Share(rank, ranks), None if ranks == 1 else ThreadGroup(rank, meeting))
            for rank in range(ranks)
        ]
        try:
            return [future.result() for future in futures]
        except BaseException:
            meeting.barrier.abort()
            raise


class ThreadChannel:
    """Rank 0's way to the threads that follow it."""

    def __init__(self, ranks: int) -> None:
        self.queues = [queue.SimpleQueue[list[MirroredCall] | None]() for _ in range(ranks)]
        self._queued: list[MirroredCall] = []

    def tell(self, message: MirroredCall) -> None:
        self._queued.append(pickle.loads(pickle.dumps(message)))

    def flush(self) -> None:
        for each in self.queues[1:]:
            each.put(self._queued)
        self._queued = []

    def abandon(self) -> None:
        self.end()

    def end(self) -> None:
        for each in self.queues[1:]:
            each.put(None)


def followed(ranks: int, tokens: int, model: Callable[[Share], Llama], lead: Callable[[Llama], Any]) -> Any:
    """What `lead` returns for rank 0's model, which the other ranks follow over caches of `tokens` tokens."""
    channel = ThreadChannel(ranks)

    def run(share: Share, group: ThreadGroup | None) -> Any:
        own = replace(model(share), group=group, channel=channel if group is not None and share.rank == 0 else None)
        if share.rank:
            cache = new_cache(own, tokens)
            objects = runners(own, cache, MAX_ROWS)
            while (calls := channel.queues[share.rank].get(timeout=60)) is not None:
                follow(calls, objects)
            return None
        try:
            return lead(own)
        finally:
            channel.end()

    return on_ranks(ranks, run)[0]
