"""The state of a GPU: clocks, power, reasons for throttling, temperature and driver, by NVML (package nvidia-ml-py).

Without the package there is no state; the report says so, and nothing else changes. Measures no speed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

REASONS = {  # nvml.h, "NvmlClocksEventReasons"
    0x1: "idle", 0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost",
    0x20: "thermal, by software", 0x40: "thermal, by hardware", 0x80: "power brake", 0x100: "display clocks",
    0x200: "board limit", 0x400: "reliability",
}  # fmt: skip


class GpuState:
    """The state of one device, to be read again and again. `why_not` says why nothing can be read, where that is so."""

    def __init__(self, device: str) -> None:
        self.why_not = ""
        self._nvml: Any = None
        if device == "cpu":
            self.why_not = "a CPU has none"
            return
        try:
            self._nvml = import_module("pynvml")
        except ImportError:
            self.why_not = "absent (package nvidia-ml-py)"
            return
        try:
            self._nvml.nvmlInit()
            self._handle = self._find(device)
        except (self._nvml.NVMLError, AttributeError, RuntimeError) as error:
            self.why_not = f"NVML: {error}"

    def _find(self, device: str) -> Any:
        """By the identity that torch tells: NVML numbers all GPUs of the machine, torch those that it may see."""
        import torch

        identity = str(torch.cuda.get_device_properties(device).uuid)
        return self._nvml.nvmlDeviceGetHandleByUUID(identity if identity.startswith("GPU-") else f"GPU-{identity}")

    def read(self) -> dict[str, Any]:
        """What NVML says now. A value that this GPU or driver does not tell is said so in its place."""
        if self.why_not:
            return {"pynvml": self.why_not}
        nvml, handle = self._nvml, self._handle
        reasons = getattr(
            nvml,
            "nvmlDeviceGetCurrentClocksEventReasons",
            getattr(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", None),
        )
        asked: dict[str, Callable[[], Any]] = {
            "sm_MHz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "most_sm_MHz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_MHz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "most_memory_MHz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "power_W": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "most_power_W": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
            "temperature_C": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "held_down_by": lambda: named(reasons(handle)),
            "driver": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
        }
        return {key: self._told(ask) for key, ask in asked.items()}

    def _told(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except (
            self._nvml.NVMLError,
            AttributeError,
            TypeError,
        ) as error:  # an older package lacks some of the functions
            return f"not told ({error})"


def named(reasons: int) -> str:
    """What holds the clocks down, in words; "nothing" where nothing does."""
    words = [name for bit, name in REASONS.items() if reasons & bit]
    if unknown := reasons & ~sum(REASONS):
        words.append(f"unknown reasons {unknown:#x}")
    return ", ".join(words) or "nothing"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
