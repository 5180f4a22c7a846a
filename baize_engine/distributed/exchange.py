"""Tensors between ranks: by NCCL on GPUs, by gloo's links on hosts. Knows neither what they mean nor who fails."""

from __future__ import annotations

import torch
import torch.distributed as dist

from baize_engine.distributed.gloo import gloo
from baize_engine.distributed.link import Link

# all_gather_into_tensor warns from torch 2.13 on, where it has this name
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Exchange:
    """What all ranks call at the same places, each from one thread at a time."""

    def __init__(self, group: dist.ProcessGroup, other: dist.ProcessGroup) -> None:
        """Of two groups of all ranks, both with gloo for the host's tensors; `group` also carries those of GPUs."""
        self.rank, self.size = group.rank(), group.size()
        self._group = group
        up, down = gloo(group), gloo(other)  # to higher ranks, and to lower ones
        self._links = {
            peer: Link(peer, up, down) if peer > self.rank else Link(peer, down, up)
            for peer in range(self.size)
            if peer != self.rank
        }

    def all_gather(self, part: torch.Tensor, out: torch.Tensor) -> None:
        """Write every rank's `part` to its row of `out`, (size, *part.shape), both contiguous, of one dtype and device.

        On a GPU this is queued on the current stream, and can be captured in a graph.
        """
        _check(part, out, (self.size, *part.shape))
        if part.is_cuda:
            _all_gather(out.view(-1), part.view(-1), group=self._group)
            return
        sent = [work for link in self._links.values() for work in link.send(part)]
        out[self.rank].copy_(part)
        for peer, link in self._links.items():
            link.receive(out[peer])
        for work in sent:
            work.wait()

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Write rank 0's contiguous `tensor` to the others'. On a GPU as all_gather."""
        if tensor.is_cuda:
            dist.broadcast(tensor, 0, group=self._group)
            return
        if self.rank > 0:
            self._links[0].receive(tensor)
            return
        for work in [work for link in self._links.values() for work in link.send(tensor)]:
            work.wait()


def _check(part: torch.Tensor, out: torch.Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(out.shape) != wanted or out.dtype != part.dtype or out.device != part.device:
        raise ValueError(
            f"out is {tuple(out.shape)} {out.dtype} on {out.device}, wanted {wanted} {part.dtype} on {part.device}"
        )
    if not (part.is_contiguous() and out.is_contiguous()):
        raise ValueError("part and out must be contiguous")
