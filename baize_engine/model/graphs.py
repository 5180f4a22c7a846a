"""CUDA graphs: all calls of a plan in one launch, on the device of their tensors. Knows no model.

`device` defaults to the current one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch

Plan = Sequence[Callable[[], object]]
_captured: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()


def runs_ahead_on(device: str) -> bool:
    """Whether plans on `device` run as graphs, which the host queues before it has read the tokens of earlier steps."""
    return torch.device(device).type == "cuda"


def run_aside(plan: Plan, device: torch.device | None = None) -> None:
    """Runs the plan once on a separate stream, so that kernels compile and libraries allocate workspaces before a capture."""
    here, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        for op in plan:
            op()
    here.wait_stream(aside)


def capture(plan: Plan, device: torch.device | None = None) -> torch.cuda.CUDAGraph:
    """The plan captured as a graph, without running it.

    The stream is created on `device`, because torch's default one belongs to the first device captured on.
    """
    graph = torch.cuda.CUDAGraph()
    _captured.add(graph)
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
        for op in plan:
            op()
    return graph


def release() -> None:
    """Frees what all graphs hold that are still there; none of them runs again.

    NCCL's communicator must outlive the graphs that hold its calls: until they are gone, its end waits (pytorch#115388).
    """
    for graph in list(_captured):
        graph.reset()
    _captured.clear()
