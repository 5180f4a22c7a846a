"""What all wrappers of kernels share: checks before a launch, and dependent launch, which overlaps successive kernels."""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from .settings import TRIGGERS

PDL_CODES = {name: code for code, name in enumerate(TRIGGERS, 1)}  # the constexpr PDL of `wait_for_inputs`; 0: none


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors (TRITON_INTERPRET=1 before triton was imported)."""
    return bool(triton.knobs.runtime.interpret)


def check_device(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    """Raise ValueError unless `tensor` is on `device` and that is a GPU (or any device, in the interpreter)."""
    if tensor.device != device or (tensor.device.type != "cuda" and not interpreting()):
        raise ValueError(f"{name} is on {tensor.device}, wanted {device if device.type == 'cuda' else 'a GPU'}")


def check(name: str, tensor: torch.Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise ValueError unless `tensor` is contiguous, of `shape`, and on `device`."""
    check_device(name, tensor, device)
    if tuple(tensor.shape) != shape or not tensor.is_contiguous():
        strided = "" if tensor.is_contiguous() else " (strided)"
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}{strided}, wanted contiguous {shape}")


@cache
def dependent_launch(device: torch.device) -> bool:
    """Whether a kernel on `device` may start before the previous one has ended (Hopper and later, Triton >= 3.4).

    Such a kernel is compiled with PDL: it prefetches what no kernel writes (weights), waits, and then reads the rest.
    """
    if device.type != "cuda" or interpreting() or not hasattr(tl.extra.cuda, "gdc_wait"):
        return False
    return torch.cuda.get_device_capability(device)[0] >= 9


def pdl(device: torch.device, trigger: str = "early") -> dict[str, Any]:
    """Keywords of a launch: the constexpr PDL, and the launch attribute if the device supports it.

    trigger: when the next kernel may start, one of `settings.TRIGGERS`.
    """
    return {"PDL": PDL_CODES[trigger], "launch_pdl": True} if dependent_launch(device) else {"PDL": 0}


@triton.jit
def wait_for_inputs(PDL: tl.constexpr):
    """Wait for the earlier kernels. Every program calls this before it reads their results and before it writes anything.

    Each kernel waits until the whole previous one has ended, and so for all before that. When the next kernel may start does
    not affect correctness, since it waits too: before this one waits (PDL 1), when it has waited (2), or where it calls
    `start_next` (3).
    """
    if PDL == 1:
        tl.extra.cuda.gdc_launch_dependents()
    if PDL > 0:
        tl.extra.cuda.gdc_wait()
    if PDL == 2:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def start_next(PDL: tl.constexpr):
    """Let the next kernel start, if its trigger is "late": call it when most of this kernel's memory traffic is done."""
    if PDL == 3:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch(pointers):
    """Prefetch the lines at `pointers` into the L2 cache. Not for the interpreter, which has no assembly."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )
