"""What a CUDA graph capture refuses, refused on the CPU: torch code that asks the device for a value."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ASKS = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape  # item, equal, ...; nonzero, unique, ...
INDEXED = (
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
)  # wait where the index is a mask


class Captured(TorchDispatchMode):
    """Within it an op whose result the host must wait for raises RuntimeError. Copies to the host, tolist among
    them, are not seen."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        if name in INDEXED:
            waits = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        else:
            waits = any(tag in func.tags for tag in ASKS)
        if waits:
            raise RuntimeError(f"{func} in a capture waits for the device")
        return func(*args, **(kwargs or {}))
