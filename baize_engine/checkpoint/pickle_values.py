"""What the pickle program of a state dict may make: tensors and storages as plain values. No data, nothing of torch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from baize_engine.checkpoint.dtypes import TORCH_STORAGES

MAX_DIMENSIONS = 16  # more than any model has


class ProgramError(ValueError):
    """A program does something that no state dict needs. `near`: the tensor that it was about, if known."""

    near: str | None = None


@dataclass(frozen=True, slots=True)
class StorageType:
    """Stands for torch.HalfStorage and its siblings."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Storage:
    """The elements that tensors lie in: entry data/`key` of the archive, `numel` elements of `dtype`."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of `storage`; `offset` and `stride` in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Dict(dict[Any, Any]):
    """Stands for a collections.OrderedDict, the only value whose state a program may set (BUILD): a module's metadata."""


def is_natural(value: Any) -> bool:
    """Whether `value` is an integer from 0 that fits into 64 bits."""
    return type(value) is int and 0 <= value < 1 << 63


def _ordered_dict(*arguments: Any) -> Dict:
    if arguments:
        raise ProgramError("an OrderedDict that is given its items at once")
    return Dict()


def _size(*arguments: Any) -> tuple[Any, ...]:
    if len(arguments) != 1:
        raise ProgramError(f"a torch.Size of {len(arguments)} arguments")
    return _dimensions(arguments[0])


def _tensor(*arguments: Any) -> Tensor:
    if len(arguments) < 4:
        raise ProgramError(f"a tensor of {len(arguments)} arguments")
    storage, offset = arguments[:2]
    shape, stride = map(_dimensions, arguments[2:4])
    naturals = all(map(is_natural, (offset, *shape, *stride)))
    if type(storage) is not Storage or len(shape) != len(stride) or not naturals:
        raise ProgramError("a tensor is described by something other than a storage and natural numbers")
    return Tensor(storage, offset, shape, stride)


def _parameter(*arguments: Any) -> Tensor:
    if not arguments or type(arguments[0]) is not Tensor:
        raise ProgramError("a parameter of something other than a tensor")
    return arguments[0]


def _dimensions(values: Any) -> tuple[Any, ...]:
    if type(values) not in (tuple, list) or len(values) > MAX_DIMENSIONS:
        raise ProgramError(f"a shape or stride that is not at most {MAX_DIMENSIONS} natural numbers")
    return tuple(values)


# the names that a program may use
NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    # a parameter that was given an attribute, for example by Megatron
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    **{("torch", name): StorageType(dtype) for name, dtype in TORCH_STORAGES.items()},
}
CALLABLE = (_ordered_dict, _size, _tensor, _parameter)  # the names that it may call
