"""Folders of weights: read, worked out in plain torch, compared."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    for path in sorted(folder.glob("*.bin")):
        tensors.update(torch.load(path, weights_only=True))
    return tensors


def expected(
    base: dict[str, torch.Tensor], diff: dict[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The reference method: widen, add the mean row where the diff has one more, add, round once."""
    wanted = {}
    for name, delta in diff.items():
        if name.endswith("inv_freq"):
            continue
        whole = base[name].float()
        if delta.shape[0] > whole.shape[0]:
            mean = base[name].double().mean(dim=0, keepdim=True).float()
            whole = torch.cat([whole, mean.expand(delta.shape[0] - whole.shape[0], -1)])
        wanted[name] = (whole + delta.float()).to(dtype)
    return wanted


def same_bits(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(got) == set(wanted)
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype, name
        assert got[name].shape == tensor.shape, name
        kind = torch.int32 if tensor.element_size() == 4 else torch.int16
        assert torch.equal(got[name].contiguous().view(kind), tensor.contiguous().view(kind)), name


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
