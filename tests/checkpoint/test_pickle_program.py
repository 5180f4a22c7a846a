"""Pickle programs: the values that Python's own machine makes of them, and damaged ones, made up by hypothesis."""

from __future__ import annotations

import pickle
from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st
from made_up import few, plain

from baize_engine.checkpoint.pickle_program import ProgramError, run


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
