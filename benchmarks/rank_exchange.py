"""What ranks of a model exchange in a decode step, and the seconds that one of them spends in it.

Knows the shapes of what is exchanged; computes nothing and loads nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from common import quantile
from torch import Tensor

from baize_engine.distributed.ranks import Ranks
from baize_engine.model.buffers import Exchanged
from baize_engine.model.llama import Llama
from baize_engine.model.mirrored import MirroredCall

STEPS, WARM = 60, 10  # of `alone`: those that count, and those before


@dataclass
class Spent:
    """Seconds of one step. sums: the gathers of what o and down give; message: rank 0's, which says what to run."""

    message: float = 0.0
    sums: float = 0.0
    logits: float = 0.0
    token: float = 0.0

    @property
    def whole(self) -> float:
        return self.message + self.sums + self.logits + self.token

    @classmethod
    def usual(cls, steps: Sequence[Spent]) -> Spent:
        """The median of each part."""
        names = ("message", "sums", "logits", "token")
        return cls(*(quantile([getattr(step, name) for step in steps], 0.5) for name in names))


class Clocked:
    """The ranks, as a model's group and as rank 0's channel, with the seconds that this rank waits for each call.

    On a CPU: a GPU's calls only queue.
    """

    def __init__(self, ranks: Ranks, hidden: int) -> None:
        """hidden: the width of a sum, which tells sums from logits."""
        self.steps: list[Spent] = [Spent()]  # a step begins with the message
        self._ranks, self._hidden = ranks, hidden

    @property
    def rank(self) -> int:
        return self._ranks.rank

    def all_gather(self, part: Tensor, out: Tensor) -> None:
        seconds = _seconds(lambda: self._ranks.all_gather(part, out))
        if part.shape[1] == self._hidden:
            self.steps[-1].sums += seconds
        else:
            self.steps[-1].logits += seconds

    def broadcast(self, tensor: Tensor) -> None:
        self.steps[-1].token += _seconds(lambda: self._ranks.broadcast(tensor))

    def tell(self, message: MirroredCall) -> None:
        self._ranks.tell(message)

    def flush(self) -> None:
        self.steps.append(Spent(message=_seconds(self._ranks.flush)))


def alone(ranks: Ranks, model: Llama, batch: int) -> Spent:
    """The exchanges of a step of `batch` rows with nothing between them. All ranks call this together."""
    share, config = model.share, model.config
    if share is None:
        raise ValueError("the model is whole, wanted a rank's share")
    clocked = Clocked(ranks, config.hidden_size)
    sums = Exchanged.of(share.ranks, batch, config.hidden_size, model.device)
    logits = Exchanged.of(share.ranks, batch, share.head_rows(config), model.device)
    tokens = torch.zeros(batch, dtype=torch.int64, device=model.device)
    for each in (sums, logits):
        each.own.zero_()
    for _ in range(WARM + STEPS):
        if ranks.rank == 0:
            clocked.tell(MirroredCall("steps", "run", (config.max_position_embeddings, batch)))
            clocked.flush()
        else:
            ranks.receive()
        for _ in range(2 * config.num_layers):
            clocked.all_gather(sums.own, sums.all)
        clocked.all_gather(logits.own, logits.all)
        clocked.broadcast(tokens)
    return Spent.usual(clocked.steps[-STEPS:])


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
