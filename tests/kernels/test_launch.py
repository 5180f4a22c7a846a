"""What wrappers check before a launch, in the interpreter and without a GPU, and which launches overlap."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from interpreter import Interpreter

pytest.importorskip("triton")

from baize_engine.kernels import launch, settings


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No answer about a device outlives a test."""
    launch.dependent_launch.cache_clear()
    yield
    launch.dependent_launch.cache_clear()


def test_tensors_must_be_on_a_gpu_but_in_the_interpreter(triton: Interpreter) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match="x is on cpu, wanted a GPU"):
        launch.check_device("x", torch.zeros(2), cpu)
    with pytest.raises(ValueError, match="x is on cpu, wanted cuda:1"):
        launch.check_device("x", torch.zeros(2), torch.device("cuda:1"))
    assert launch.interpreting() is False
    assert triton.call("launch", "interpreting")[0] is True
    triton.call("launch", "check_device", "x", torch.zeros(2), cpu)


def test_tensors_must_be_of_the_shape_and_contiguous(triton: Interpreter) -> None:
    cpu = torch.device("cpu")
    triton.call("launch", "check", "x", torch.zeros(2, 3), (2, 3), cpu)
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\), wanted contiguous \(3, 2\)"):
        triton.call("launch", "check", "x", torch.zeros(2, 3), (3, 2), cpu)
    with pytest.raises(ValueError, match=r"x has shape \(3, 2\) \(strided\), wanted contiguous \(3, 2\)"):
        triton.call("launch", "check", "x", torch.zeros(2, 3).t(), (3, 2), cpu)


@pytest.mark.parametrize(("capability", "overlaps"), [((8, 9), False), ((9, 0), True), ((12, 0), True)])
def test_launches_overlap_from_hopper_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], overlaps: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(launch.tl.extra.cuda, "gdc_wait", None, raising=False)
    device = torch.device("cuda:0")
    assert launch.dependent_launch(device) is overlaps
    for code, trigger in enumerate(settings.TRIGGERS, 1):
        wanted = {"PDL": code, "launch_pdl": True} if overlaps else {"PDL": 0}
        assert launch.pdl(device, trigger) == wanted


def test_no_launch_overlaps_on_the_cpu_or_with_an_older_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.pdl(torch.device("cpu")) == {"PDL": 0}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.delattr(launch.tl.extra.cuda, "gdc_wait", raising=False)
    assert launch.pdl(torch.device("cuda:0")) == {"PDL": 0}
