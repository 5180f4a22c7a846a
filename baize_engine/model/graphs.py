"""CUDA graphs: the calls of a plan launched as one, on the device where their tensors lie. Knows no model.

`device`: the current one unless given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Plan = Sequence[Callable[[], object]]


def runs_ahead_on(device: str) -> bool:
    """Whether plans on `device` are captured as graphs, which the host queues ahead of the tokens it has read."""
    return torch.device(device).type == "cuda"


def run_aside(plan: Plan, device: torch.device | None = None) -> None:
    """Runs the plan once on a stream of its own: kernels are compiled, libraries take their workspaces before a capture."""
    here, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        for op in plan:
            op()
    here.wait_stream(aside)


def capture(plan: Plan, device: torch.device | None = None) -> torch.cuda.CUDAGraph:
    """The plan as a graph; nothing of it runs. The stream is of `device`: torch's own is of the first device captured on."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
        for op in plan:
            op()
    return graph
