"""Choice of the device. Probes nothing at import time, and imports torch only for a GPU."""

from __future__ import annotations

import ctypes
import re
from functools import cache

from baize_engine.errors import BackendError


def resolve_device(device: str) -> str:
    """Resolve "auto", "cpu" or "cuda[:n]" to "cpu" or "cuda[:n]". BackendError says why a device cannot be used.

    The driver (libcuda) is asked for a GPU first, so that a run on the CPU does not import torch for it.
    """
    if device == "cpu":
        return device
    if not re.fullmatch("auto|cuda(:(0|[1-9][0-9]{0,5}))?", device):
        raise BackendError(f"device {device!r} is not known, wanted auto, cpu, cuda or cuda:N")
    reason = _no_gpu()
    if device == "auto":
        return "cpu" if reason else "cuda"
    if reason:
        raise BackendError(f"device {device} cannot be used: {reason}")
    count = _gpu_count()
    if ":" in device and int(device[5:]) >= count:
        raise BackendError(f"device {device} cannot be used: this machine has {count} GPU(s), numbered from 0")
    return device


@cache
def _gpu_count() -> int:
    """The number of GPUs that the driver shows to this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _no_gpu() -> str | None:
    """Why no GPU can be used; None if one can."""
    if _gpu_count() == 0:
        return "no CUDA driver with a GPU was found"
    import torch

    if not torch.cuda.is_available():
        return "the driver shows a GPU, but this build of torch has no CUDA"
    return None
