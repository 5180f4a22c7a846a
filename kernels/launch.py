"""What every wrapper checks before a launch."""

import torch
import triton


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 before triton was imported), on CPU tensors."""
    return bool(triton.knobs.runtime.interpret)


def check_device(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    """ValueError unless `tensor` lies on `device`, a GPU (or anywhere in the interpreter)."""
    if tensor.device != device or (tensor.device.type != "cuda" and not interpreting()):
        raise ValueError(f"{name} is on {tensor.device}, wanted {device if device.type == 'cuda' else 'a GPU'}")
