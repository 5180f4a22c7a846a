"""What every wrapper shares: checks before a launch, and how kernels follow each other on the GPU."""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from .settings import TRIGGERS

PDL_CODES = {name: code for code, name in enumerate(TRIGGERS, 1)}  # the constexpr PDL of `wait_for_inputs`; 0: none


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 before triton was imported), on CPU tensors."""
    return bool(triton.knobs.runtime.interpret)


def check_device(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    """ValueError unless `tensor` lies on `device`, a GPU (or anywhere in the interpreter)."""
    if tensor.device != device or (tensor.device.type != "cuda" and not interpreting()):
        raise ValueError(f"{name} is on {tensor.device}, wanted {device if device.type == 'cuda' else 'a GPU'}")


def check(name: str, tensor: torch.Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """ValueError unless `tensor` is contiguous, of `shape`, on `device`."""
    check_device(name, tensor, device)
    if tuple(tensor.shape) != shape or not tensor.is_contiguous():
        strided = "" if tensor.is_contiguous() else " (strided)"
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}{strided}, wanted contiguous {shape}")


@cache
def dependent_launch(device: torch.device) -> bool:
    """Whether kernels on `device` may start before the one before them has ended (Hopper and later, Triton >= 3.4).

    Such a kernel is compiled with PDL: it fetches what no kernel writes (weights), waits, and then reads the rest.
    """
    if device.type != "cuda" or interpreting() or not hasattr(tl.extra.cuda, "gdc_wait"):
        return False
    return torch.cuda.get_device_capability(device)[0] >= 9


def pdl(device: torch.device, trigger: str = "early") -> dict[str, Any]:
    """The launch's keywords: the constexpr PDL, and the launch attribute where the device has it."""
    return {"PDL": PDL_CODES[trigger], "launch_pdl": True} if dependent_launch(device) else {"PDL": 0}


def pdl_code(trigger: str | None) -> int:
    """The constexpr PDL of a gate's case."""
    return PDL_CODES[trigger] if trigger else 0


@triton.jit
def wait_for_inputs(PDL: tl.constexpr):
    """Every program calls this, before it reads what an earlier kernel wrote and before it writes anything.

    Each kernel waits for the whole of the one before it, and so for all before that. When the next one may start is no
    matter of right or wrong, for it waits alike: before this one waits (1), when it has waited (2), or where the kernel says
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
    """The late place to let the next kernel start, where most of this one's memory traffic is done."""
    if PDL == 3:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch(pointers):
    """Asks for the lines at `pointers` to come into the L2 cache; never in the interpreter, which has no assembly."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )
