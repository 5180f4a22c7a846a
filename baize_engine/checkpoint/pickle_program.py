"""The pickle program of a state dict, in a machine of our own that can do nothing else.

The standard library's machine calls what a program names, and even where the names are few lets it change them (BUILD), hash
tuples that take for ever (SETITEM) and allocate by number (BYTEARRAY8). This one has the opcodes that torch.save writes; of
names those that a state dict needs, each standing for a plain value; keys that are text or small numbers; and a
bounded number of steps. Nothing of Python's or torch's is ever called.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from baize_engine.checkpoint.dtypes import TORCH_STORAGES
from baize_engine.printable import brief, shown

MAX_STEPS = 1 << 20  # some 60 a tensor: room for 17 000 tensors a file, where a 65B model has 723 in all
MAX_DIMENSIONS = 16  # no model comes near
MAX_TEXT = 1 << 12  # bytes of a name


class ProgramError(ValueError):
    """What a program does that no state dict needs; `near` is the tensor that it was about, where that is known."""

    near: str | None = None


@dataclass(frozen=True, slots=True)
class StorageType:
    """Stands for torch.HalfStorage and its kin."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Storage:
    key: str
    dtype: str
    numel: int


@dataclass(frozen=True, slots=True)
class Tensor:
    storage: Storage
    offset: int  # elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Dict(dict[Any, Any]):
    """A collections.OrderedDict of the program; the one thing that BUILD, which brings a module's metadata, is for."""


def _ordered_dict(*arguments: Any) -> Dict:
    if arguments:
        raise ProgramError("an OrderedDict that is given its items at once")
    return Dict()


def _size(*arguments: Any) -> tuple[Any, ...]:
    (values,) = arguments
    return _dimensions(values)


def _tensor(*arguments: Any) -> Tensor:
    if len(arguments) < 4:
        raise ProgramError(f"a tensor of {len(arguments)} arguments")
    storage, offset = arguments[:2]
    shape, stride = map(_dimensions, arguments[2:4])
    if (
        type(storage) is not Storage
        or len(shape) != len(stride)
        or not all(map(_is_natural, (offset, *shape, *stride)))
    ):
        raise ProgramError("a tensor is described by something else than a storage and natural numbers")
    return Tensor(storage, offset, shape, stride)


def _parameter(*arguments: Any) -> Tensor:
    if not arguments or type(arguments[0]) is not Tensor:
        raise ProgramError("a parameter of something else than a tensor")
    return arguments[0]


def _dimensions(values: Any) -> tuple[Any, ...]:
    if type(values) not in (tuple, list) or len(values) > MAX_DIMENSIONS:
        raise ProgramError(f"a shape or stride that is not at most {MAX_DIMENSIONS} natural numbers")
    return tuple(values)


def _is_natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    (
        "torch._utils",
        "_rebuild_parameter_with_state",
    ): _parameter,  # one that somebody gave an attribute, such as Megatron
    **{("torch", name): StorageType(dtype) for name, dtype in TORCH_STORAGES.items()},
}
_CALLED = tuple({id(value): value for value in _NAMES.values() if callable(value)}.values())


def run(program: bytes) -> Any:
    """The value that `program` leaves. ProgramError where it wants anything that a state dict does not."""
    machine = _Machine(program)
    try:
        return machine.run()
    except ProgramError as error:
        error.near = machine.near()
        raise
    except (IndexError, struct.error):
        broken = ProgramError("it is cut short, or takes what is not there")
        broken.near = machine.near()
        raise broken from None


class _Machine:
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
        """The last name that stands where a state dict has its keys."""
        bottom = [*self.outer, self.stack][:2]
        return next((value for stack in bottom[::-1] for value in stack[::-1] if type(value) is str), None)

    def take(self, count: int) -> bytes:
        begin, self.at = self.at, self.at + count
        if self.at > len(self.program):
            raise ProgramError("it is cut short")
        return self.program[begin : self.at]

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

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
        """What was pushed since the last mark."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def push_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise ProgramError("a tuple of what is not there")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(items)

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ProgramError("a name that is not text")
        if (module, name) not in _NAMES:
            raise ProgramError(f"it asks for {shown(module)}.{shown(name)}, which no weight file needs")
        self.stack.append(_NAMES[module, name])

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def storage(self) -> None:
        pid = self.stack.pop()
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            raise ProgramError("it refers to something else than a storage")
        _, kind, key, _, numel = pid
        if type(kind) is not StorageType or type(key) is not str or not _is_natural(numel):
            raise ProgramError(f"it refers to a storage of unknown type or size ({brief(key)})")
        storage = Storage(key, kind.dtype, numel)
        if self.storages.setdefault(key, storage) != storage:  # torch would take the first of both for all tensors
            raise ProgramError(f"it refers to the storage {shown(key)} as two of different types or sizes")
        self.stack.append(storage)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or not any(function is known for known in _CALLED):
            raise ProgramError("it calls what cannot be called")
        if function is _size and len(arguments) != 1:
            raise ProgramError(f"a torch.Size of {len(arguments)} arguments")
        self.stack.append(function(*arguments))

    def build(self) -> None:
        self.stack.pop()  # metadata of a module: nothing that is read here
        if type(self.stack[-1]) is not Dict:
            raise ProgramError("it sets the state of something else than an OrderedDict")

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ProgramError("it appends to something else than a list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, Dict) or len(items) % 2:
            raise ProgramError("it sets items of something else than a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise ProgramError(f"a dict's key is a {type(key).__name__}, wanted text")
            target[key] = value

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def marked_tuple(self) -> None:
        items = tuple(self.marked())
        self.stack.append(items)

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ProgramError("it takes up what it never put down")
        self.stack.append(self.memo[index])

    def frame(self) -> None:
        self.take(8)  # its length is for readers that read ahead

    def version(self) -> None:
        if not 2 <= self.take(1)[0] <= 5:
            raise ProgramError("its version is not one of 2 to 5")


def _pushing(value: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value(machine))


_U1, _U2, _U4, _I4, _F8 = map(struct.Struct, ("<B", "<H", "<L", "<l", ">d"))
_STEPS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.version,
    0x95: _Machine.frame,
    ord("("): _Machine.mark,
    ord("N"): _pushing(lambda m: None),
    0x88: _pushing(lambda m: True),
    0x89: _pushing(lambda m: False),
    ord("K"): _pushing(lambda m: m.number(_U1)),
    ord("M"): _pushing(lambda m: m.number(_U2)),
    ord("J"): _pushing(lambda m: m.number(_I4)),
    0x8A: _pushing(lambda m: int.from_bytes(m.take(m.number(_U1)), "little", signed=True)),  # LONG1
    ord("G"): _pushing(lambda m: m.number(_F8)),
    ord("X"): _pushing(lambda m: m.text(m.number(_U4))),
    0x8C: _pushing(lambda m: m.text(m.number(_U1))),
    ord(")"): lambda m: m.push_tuple(0),
    0x85: lambda m: m.push_tuple(1),
    0x86: lambda m: m.push_tuple(2),
    0x87: lambda m: m.push_tuple(3),
    ord("t"): _Machine.marked_tuple,
    ord("]"): _pushing(lambda m: []),
    ord("a"): lambda m: m.extend([m.stack.pop()]),
    ord("e"): lambda m: m.extend(m.marked()),
    ord("}"): _pushing(lambda m: {}),
    ord("s"): _Machine.set_item,
    ord("u"): lambda m: m.set_items(m.marked()),
    ord("q"): lambda m: m.put(m.number(_U1)),
    ord("r"): lambda m: m.put(m.number(_U4)),
    0x94: lambda m: m.put(len(m.memo)),
    ord("h"): lambda m: m.get(m.number(_U1)),
    ord("j"): lambda m: m.get(m.number(_U4)),
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: _Machine.stack_name,
    ord("Q"): _Machine.storage,
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
}
