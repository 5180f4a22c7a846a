"""The state of a GPU by NVML, or why it is not known."""

from __future__ import annotations

import sys
from typing import Any

import fake_gpu
import gpu_state
import pytest
import torch
from gpu_state import GpuState, named


@pytest.fixture(autouse=True)
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: fake_gpu.Properties)


def state(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> GpuState:
    monkeypatch.setitem(sys.modules, "pynvml", fake_gpu.nvml(**changes))
    return GpuState("cuda")


def test_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state(monkeypatch).read() == {
        "sm_MHz": 1755, "most_sm_MHz": 1980, "memory_MHz": 2619, "most_memory_MHz": 2619, "power_W": 512.3,
        "most_power_W": 700.0, "temperature_C": 61, "held_down_by": "power cap, thermal, by software",
        "driver": "580.159.04",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bits", "text"),
    [(0, "nothing"), (1, "idle"), (0x44, "power cap, thermal, by hardware"), (0x100000, "unknown reasons 0x100000")],
)
def test_reasons(bits: int, text: str) -> None:
    assert named(bits) == text


def test_older_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The older name of the reasons' function, bytes for text, and a function that is not there."""
    found = state(
        monkeypatch, nvmlDeviceGetCurrentClocksEventReasons=None,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x8, nvmlSystemGetDriverVersion=lambda: b"470.1",
        nvmlDeviceGetEnforcedPowerLimit=None,
    ).read()  # fmt: skip
    assert (found["held_down_by"], found["driver"], found["power_W"]) == ("hardware slowdown", "470.1", 512.3)
    assert found["most_power_W"].startswith("not told (module 'pynvml' has no attribute")


def test_neither_name_of_the_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    found = state(monkeypatch, nvmlDeviceGetCurrentClocksEventReasons=None).read()
    assert found["held_down_by"].startswith("not told")
    assert found["sm_MHz"] == 1755


def test_what_a_gpu_does_not_tell_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_supported(handle: str) -> None:
        raise fake_gpu.NVMLError("Not Supported")

    found = state(monkeypatch, nvmlDeviceGetPowerUsage=not_supported).read()
    assert (found["power_W"], found["temperature_C"]) == ("not told (Not Supported)", 61)


def test_why_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise fake_gpu.NVMLError("Driver Not Loaded")

    assert state(monkeypatch, nvmlInit=no_driver).read() == {"pynvml": "NVML: Driver Not Loaded"}
    monkeypatch.setattr(fake_gpu.Properties, "uuid", "other")
    assert GpuState("cuda").why_not.startswith("NVML: ")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuState("cuda").read() == {"pynvml": "absent (package nvidia-ml-py)"}
    assert GpuState("cpu").why_not == "a CPU has none"


def test_the_reasons_are_nvmls() -> None:
    """Where the package is installed: each bit has the meaning that it has there."""
    nvml = pytest.importorskip("pynvml")
    known = {name: value for name, value in vars(nvml).items() if name.startswith("nvmlClocksThrottleReason")}
    assert known["nvmlClocksThrottleReasonSwPowerCap"] == next(
        b for b, n in gpu_state.REASONS.items() if n == "power cap"
    )
    assert {value for value in known.values() if value.bit_count() == 1} <= set(gpu_state.REASONS)
