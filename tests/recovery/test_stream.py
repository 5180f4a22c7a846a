"""The pass over a base: targets of its tensors, what is left to do, and what it counts."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

import pytest
import tiny

from baize_engine import recover
from baize_engine.backend import choose
from baize_engine.checkpoint.base import read_base
from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.recovery.checks import checked_plan
from baize_engine.recovery.options import RecoveryOptions
from baize_engine.recovery.plan import Plan
from baize_engine.recovery.stream import Target, stream, traffic


class Memory:
    """A sink that keeps the bytes."""

    def __init__(self) -> None:
        self.tensors: dict[str, bytearray] = {}
        self._lock = threading.Lock()

    def write(self, name: str, offset: int, view: memoryview) -> None:
        with self._lock:
            content = self.tensors.setdefault(name, bytearray())
            assert len(content) == offset  # in order
            content += view


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    base, diff = tiny.write_pair(tmp_path)
    return checked_plan(read_base(base), read_index(diff), RecoveryOptions(device="cpu"))


def test_targets_share_a_pass_over_the_base(plan: Plan) -> None:
    one, two, moved = Target(plan, Memory()), Target(plan, Memory()), [0]
    lock = threading.Lock()

    def progress(nbytes: int) -> None:
        with lock:
            moved[0] += nbytes

    stream([one, two], choose.diff_adder("cpu"), progress=progress)
    assert one.sink.tensors == two.sink.tensors  # type: ignore[attr-defined]
    assert list(one.records) == list(two.records) == plan.names
    base = sum(job.base.nbytes for job in plan.jobs)
    assert moved[0] == traffic([one, two]) == 2 * traffic([Target(plan)]) - base
    assert traffic([one, two], left=True) == 0


def test_what_has_a_record_is_not_made_again(plan: Plan) -> None:
    whole = Target(plan, Memory())
    stream([whole], choose.diff_adder("cpu"))
    done = plan.names[::2]
    rest = Target(plan, Memory())
    rest.records = {name: whole.records[name] for name in reversed(done)}
    left = [job for job in plan.jobs if job.name not in done]
    assert traffic([rest], left=True) == sum(job.traffic for job in left)
    stream([rest], choose.diff_adder("cpu"))
    assert set(rest.sink.tensors) == {job.name for job in left}  # type: ignore[attr-defined]
    assert rest.records == whole.records
    assert list(rest.records) == plan.names


def test_records_are_those_of_the_files(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    wanted = recover(base, diff, tmp_path / "out", device="cpu", progress=False).manifest.tensors
    work = checked_plan(read_base(base), read_index(diff), RecoveryOptions(device="cpu"))
    target = Target(work)
    stream([target], choose.diff_adder("cpu"))
    assert target.records == wanted


def test_hashing_can_be_left_out(plan: Plan) -> None:
    target = Target(plan, Memory())
    stream([target], choose.diff_adder("cpu"), hashing=False)
    assert {record.sha256 for record in target.records.values()} == {""}
    sizes = {job.name: job.other.numel * ITEMSIZE[job.dtype] for job in plan.jobs}
    assert {name: len(content) for name, content in target.sink.tensors.items()} == sizes  # type: ignore[attr-defined]


def test_readers_end_with_their_tensor(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of float64 keeps a buffer of 256 KiB: with one a tensor, memory would grow with the model."""
    alive, most, enter = weakref.WeakSet[TensorReader](), [0], TensorReader.__enter__

    def counting(self: TensorReader) -> TensorReader:
        alive.add(self)
        most[0] = max(most[0], len(alive))
        return enter(self)

    monkeypatch.setattr(TensorReader, "__enter__", counting)
    stream([Target(plan), Target(plan)], choose.diff_adder("cpu"), workers=1)
    assert most[0] == 3  # the base's and one for each target, of all tensors
    assert not alive
