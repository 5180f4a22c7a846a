"""Pickle programs: the values of Python's own machine, and hostile or damaged ones, which run no code and are refused."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import few, plain
from torch_archives import FLOATS, archive, program

from baize_engine.checkpoint.pickle_program import ProgramError, run
from baize_engine.checkpoint.torch_file import read_torch
from baize_engine.errors import CheckpointError


@few
@given(plain, st.integers(2, 4))
def test_plain_values_come_out_as_pythons_machine_has_them(value: object, protocol: int) -> None:
    program = pickle.dumps(value, protocol)
    assert run(program) == pickle.loads(program) == value


@few
@given(plain, st.integers(2, 4), st.data())
def test_a_damaged_program_is_refused_or_makes_a_value(value: object, protocol: int, data: st.DataObject) -> None:
    program = bytearray(pickle.dumps({"w": value, "o": OrderedDict(a=1)}, protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    told, found = "", None
    try:
        found = run(bytes(program))
    except ProgramError as refused:
        told = str(refused)
    assert len(told) < 1000
    ours = type(found).__module__ == "baize_engine.checkpoint.pickle_program"
    assert found is None or ours or callable(found) or isinstance(found, str | int | float | tuple | list | dict)


class Runs:
    """Pickles as a call of anything."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> object:
        return self.call


class SetsState:
    def __reduce__(self) -> object:
        return OrderedDict, (), {"__setstate__": Runs(os.system, "touch ran"), "x": 1}


def marker(tmp_path: Path) -> str:
    return f"touch {tmp_path / 'ran'}"


HOSTILE = {
    "os.system": lambda t: Runs(os.system, marker(t)),
    "nested": lambda t: {"w": [({"x": Runs(os.system, marker(t))},)]},
    "eval": lambda t: Runs(eval, f"__import__('os').system({marker(t)!r})"),
    "getattr chain": lambda t: Runs(getattr, Runs(__import__, "os"), "system"),
    "state": lambda t: SetsState(),
    "builtins.open": lambda t: Runs(open, str(t / "ran"), "w"),
    "torch.load": lambda t: Runs(torch.load, str(t / "ran")),
    "partial": lambda t: Runs(__import__("functools").partial, os.system, marker(t)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_no_code_runs(tmp_path: Path, case: str) -> None:
    path = archive(tmp_path / "m.bin", pickle.dumps(HOSTILE[case](tmp_path), protocol=2))
    with pytest.raises(CheckpointError, match="which no weight file needs"):
        read_torch(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin"]


LIES = {
    "beyond the storage": (program(FLOATS, offset=1), {"data/0": bytes(8)}, "elements 1 to 3 of a storage that has 2"),
    "storage larger than entry": (program((*FLOATS[:4], 4)), {"data/0": bytes(8)}, "has 8 bytes, wanted 16"),
    "storage smaller than entry": (program(FLOATS), {"data/0": bytes(12)}, "has 12 bytes, wanted 8"),
    "no such entry": (program(FLOATS), {}, "no entry data/0"),
    "entry elsewhere": (program((*FLOATS[:2], "../../x", "cpu", 2)), {"data/0": bytes(8)}, "no entry data/../../x"),
    "negative offset": (program(FLOATS, offset=-1), {"data/0": bytes(8)}, "natural numbers"),
    "negative shape": (program(FLOATS, shape=(-2,)), {"data/0": bytes(8)}, "natural numbers"),
    "huge shape": (
        program(FLOATS, shape=(1 << 40, 1 << 40), stride=(1 << 40, 1)),
        {"data/0": bytes(8)},
        "of a storage that has 2",
    ),
    "huger still": (program(FLOATS, shape=(1 << 70,)), {"data/0": bytes(8)}, "natural numbers"),
    "strides short": (program(FLOATS, shape=(2, 1)), {"data/0": bytes(8)}, "natural numbers"),
    "overlapping strides": (program(FLOATS, shape=(2,), stride=(0,)), {"data/0": bytes(8)}, "stride"),
    "floats for numbers": (program(FLOATS, shape=(2.0,)), {"data/0": bytes(8)}, "natural numbers"),
    "unknown reference": (program(("file", "x")), {}, "something other than a storage"),
    "negative storage": (program((*FLOATS[:4], -2)), {"data/0": bytes(8)}, "unknown type or size"),
    "big endian": (program(FLOATS), {"data/0": bytes(8), "byteorder": b"big"}, "big-endian"),
    "two programs": (program(FLOATS), {"data/0": bytes(8), "x/data.pkl": b""}, "2 entries data.pkl"),
    "torn program": (program(FLOATS)[:-9], {"data/0": bytes(8)}, "refused"),
    "empty program": (b"", {}, "refused"),
    "huge memo index": (b"\x80\x02}r\xff\xff\xff\x7f.", {}, None),
}


@pytest.mark.parametrize("case", LIES)
def test_lies_are_named(tmp_path: Path, case: str) -> None:
    content, entries, message = LIES[case]
    path = archive(tmp_path / "m.bin", content, entries)
    if message is None:
        assert read_torch(path) == []  # and no gigabytes were taken for it
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        read_torch(path)
    assert str(path) in str(caught.value)
