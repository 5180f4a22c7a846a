"""Runs the pickle program of a state dict, in a machine of our own that can do nothing else.

The standard library's machine calls whatever a program names. Even if the names are few, it lets a program change them (BUILD),
hash tuples that take for ever (SETITEM) and allocate by number (BYTEARRAY8). This one has only the opcodes that torch.save
writes, the names that a state dict needs (NAMES), keys that are text or small numbers, and a bounded number of
steps. It never calls anything of Python's or torch's: it makes plain values that describe tensors, and no data.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from baize_engine.checkpoint.dtypes import TORCH_STORAGES
from baize_engine.printable import brief, shown

MAX_STEPS = 1 << 20  # about 60 a tensor: room for 17 000 tensors in a file, and a 65B model has 723 in all
MAX_TEXT = 1 << 12  # bytes of a name
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


def _ordered_dict(*items: Any) -> Dict:
    if items:
        raise ProgramError("an OrderedDict that is given its items at once")
    return Dict()


def _tensor(storage: Any, offset: Any, size: Any, strides: Any, *_: Any) -> Tensor:
    shape, stride = _dimensions(size), _dimensions(strides)
    naturals = all(map(is_natural, (offset, *shape, *stride)))
    if type(storage) is not Storage or len(shape) != len(stride) or not naturals:
        raise ProgramError("a tensor is described by something other than a storage and natural numbers")
    return Tensor(storage, offset, shape, stride)


def _parameter(data: Any, *_: Any) -> Tensor:
    if type(data) is not Tensor:
        raise ProgramError("a parameter of something other than a tensor")
    return data


def _dimensions(values: Any) -> tuple[Any, ...]:
    if type(values) not in (tuple, list) or len(values) > MAX_DIMENSIONS:
        raise ProgramError(f"a shape or stride that is not at most {MAX_DIMENSIONS} natural numbers")
    return tuple(values)


# the names that a program may use
NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch", "Size"): _dimensions,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    # a parameter that was given an attribute, for example by Megatron
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    **{("torch", name): StorageType(dtype) for name, dtype in TORCH_STORAGES.items()},
}
CALLABLE = (_ordered_dict, _dimensions, _tensor, _parameter)  # what it may call


def run(program: bytes) -> Any:
    """Run `program` and return the value that it leaves. ProgramError if it does anything that no state dict needs."""
    machine = _Machine(program)
    try:
        return machine.run()
    except (ProgramError, IndexError) as error:
        broken = "it is cut short, or pops from an empty stack"
        refused = error if isinstance(error, ProgramError) else ProgramError(broken)
        refused.near = machine.near()
        raise refused from None


class _Machine:
    """A program and its state: stack, marks, memo. Methods are opcodes or read their operands."""

    def __init__(self, program: bytes) -> None:
        self.program, self.at = program, 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below the open marks
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        program, steps = self.program, _STEPS
        for _ in range(MAX_STEPS):
            code = program[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return self.stack.pop()
            step = steps.get(code)
            if step is None:
                raise ProgramError(f"it has the opcode {code:#04x}, which no weight file needs")
            step(self)
        raise ProgramError(f"it takes more than {MAX_STEPS} steps")

    def near(self) -> str | None:
        """The last string where a state dict has its keys, which is the name of the tensor at work."""
        bottom = [*self.outer, self.stack][:2]
        return next((value for stack in bottom[::-1] for value in stack[::-1] if type(value) is str), None)

    def take(self, count: int) -> bytes:
        """The next `count` bytes of the program."""
        begin, self.at = self.at, self.at + count
        if self.at > len(self.program):
            raise ProgramError("it is cut short")
        return self.program[begin : self.at]

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def text(self, length: int) -> str:
        if length > MAX_TEXT:
            raise ProgramError(f"a text of {length} bytes, wanted at most {MAX_TEXT}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise ProgramError("a text that is not UTF-8") from None

    def line(self) -> str:
        end = self.program.find(b"\n", self.at, self.at + MAX_TEXT)
        if end < 0:
            raise ProgramError("a name without an end")
        text = self.text(end - self.at)
        self.at += 1
        return text

    def marked(self) -> list[Any]:
        """Pop what was pushed since the last mark."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def popped(self, count: int) -> list[Any]:
        """Pop the last `count` values."""
        if len(self.stack) < count:
            raise ProgramError("it takes more items than the stack has")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ProgramError("a name that is not text")
        if (module, name) not in NAMES:
            raise ProgramError(f"it asks for {shown(module)}.{shown(name)}, which no weight file needs")
        self.stack.append(NAMES[module, name])

    def storage(self) -> None:
        pid = self.stack.pop()
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            raise ProgramError("it refers to something other than a storage")
        _, kind, key, _, numel = pid
        if type(kind) is not StorageType or type(key) is not str or not is_natural(numel):
            raise ProgramError(f"it refers to a storage of unknown type or size ({brief(key)})")
        storage = Storage(key, kind.dtype, numel)
        if self.storages.setdefault(key, storage) != storage:  # torch would use the first for all tensors
            raise ProgramError(f"it refers to the storage {shown(key)} as two of different types or sizes")
        self.stack.append(storage)

    def reduce(self) -> None:
        function, arguments = self.popped(2)
        if type(arguments) is not tuple or not any(function is known for known in CALLABLE):
            raise ProgramError("it calls something that cannot be called")
        try:
            self.push(function(*arguments))
        except TypeError:
            raise ProgramError(f"it calls something with {len(arguments)} arguments") from None

    def build(self) -> None:
        self.stack.pop()  # a module's metadata, not needed
        if type(self.stack[-1]) is not Dict:
            raise ProgramError("it sets the state of something other than an OrderedDict")

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ProgramError("it appends to something other than a list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, Dict) or len(items) % 2:
            raise ProgramError("it sets items of something other than a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise ProgramError(f"a dict's key is a {type(key).__name__}, wanted text")
            target[key] = value

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ProgramError("it gets a memo entry that it never put")
        self.stack.append(self.memo[index])

    def version(self) -> None:
        if not 2 <= self.take(1)[0] <= 5:
            raise ProgramError("its version is not one of 2 to 5")


_STEPS: dict[int, Callable[[_Machine], object]] = {
    0x80: _Machine.version,
    0x95: lambda m: m.take(8),  # FRAME: a length, of use only for reading ahead
    ord("("): _Machine.mark,
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.number(1)),
    ord("M"): lambda m: m.push(m.number(2)),
    ord("J"): lambda m: m.push(m.number(4, signed=True)),
    0x8A: lambda m: m.push(m.number(m.number(1), signed=True)),  # LONG1
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    ord("X"): lambda m: m.push(m.text(m.number(4))),
    0x8C: lambda m: m.push(m.text(m.number(1))),
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.push(tuple(m.popped(1))),
    0x86: lambda m: m.push(tuple(m.popped(2))),
    0x87: lambda m: m.push(tuple(m.popped(3))),
    ord("t"): lambda m: m.push(tuple(m.marked())),
    ord("]"): lambda m: m.push([]),
    ord("a"): lambda m: m.extend(m.popped(1)),
    ord("e"): lambda m: m.extend(m.marked()),
    ord("}"): lambda m: m.push({}),
    ord("s"): lambda m: m.set_items(m.popped(2)),
    ord("u"): lambda m: m.set_items(m.marked()),
    ord("q"): lambda m: m.put(m.number(1)),
    ord("r"): lambda m: m.put(m.number(4)),
    0x94: lambda m: m.put(len(m.memo)),
    ord("h"): lambda m: m.get(m.number(1)),
    ord("j"): lambda m: m.get(m.number(4)),
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: lambda m: m.name(*m.popped(2)),
    ord("Q"): _Machine.storage,
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
}
