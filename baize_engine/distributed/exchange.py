"""Tensors between ranks: by NCCL on GPUs, by gloo on hosts. Knows neither what they mean nor who fails.

Measured between 2 ranks of one thread on 2 cores (Zen 5, torch 2.13; others at work, best of 4 times 300), us of a gather of
1, 20 and 200 KB a rank: all_gather 371, 360, 510; all_gather_single 228, 181, 436; sends and receives between all pairs by the
backend's own methods 95, 130, 121. So is all of gloo here.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from baize_engine.distributed.gloo import gloo

GATHER, BROADCAST = 1, 2  # tags: what a message between two ranks is for; 0 is that of messages.py
# all_gather_into_tensor warns from torch 2.13 on, where it has this name
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Exchange:
    """What all ranks call at the same places, each from one thread at a time."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank, self.size = group.rank(), group.size()
        self._group = group
        self._gloo = gloo(group)
        self._peers = [rank for rank in range(self.size) if rank != self.rank]

    def all_gather(self, part: torch.Tensor, out: torch.Tensor) -> None:
        """Write every rank's `part` to its row of `out`, (size, *part.shape), both contiguous, of one dtype and device.

        On a GPU this is queued on the current stream, and can be captured in a graph.
        """
        _check(part, out, (self.size, *part.shape))
        if part.is_cuda:
            _all_gather(out.view(-1), part.view(-1), group=self._group)
            return
        awaited = [self._gloo.recv([out[peer]], peer, GATHER) for peer in self._peers]
        awaited += [self._gloo.send([part], peer, GATHER) for peer in self._peers]
        out[self.rank].copy_(part)
        for work in awaited:
            work.wait()

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Write rank 0's contiguous `tensor` to the others'. On a GPU as all_gather."""
        if tensor.is_cuda:
            dist.broadcast(tensor, 0, group=self._group)
            return
        if self.rank == 0:
            awaited = [self._gloo.send([tensor], peer, BROADCAST) for peer in self._peers]
        else:
            awaited = [self._gloo.recv([tensor], 0, BROADCAST)]
        for work in awaited:
            work.wait()


def _check(part: torch.Tensor, out: torch.Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(out.shape) != wanted or out.dtype != part.dtype or out.device != part.device:
        raise ValueError(
            f"out is {tuple(out.shape)} {out.dtype} on {out.device}, wanted {wanted} {part.dtype} on {part.device}"
        )
    if not (part.is_contiguous() and out.is_contiguous()):
        raise ValueError("part and out must be contiguous")
