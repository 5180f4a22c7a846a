"""A failing disk, a full one, changed sources, kills: each ends with a message that names the file, and nothing half-made.

The faults come from a shim that lies between Python and the system (`io_faults.c`), so that no path of the code is left out.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import faulty_recover
import pytest
import tiny

from baize_engine import recover, verify
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.checkpoint.writer import CheckpointWriter
from baize_engine.errors import CheckpointError, OutputError
from baize_engine.recovery.output import Output


@pytest.fixture
def root(tmp_path: Path) -> Path:
    cfg = tiny.config(num_hidden_layers=1, vocab_size=300, hidden_size=64)
    tiny.write_pair(tmp_path, cfg=cfg)
    return tmp_path


# calls, of which files, errno, whether all later calls fail too, and how many calls lie between two runs
SWEEPS = {
    "base cannot be opened": ("open", "base", errno.EACCES, 0, 11),
    "diff vanishes": ("open", "diff", errno.ENOENT, 0, 11),
    "header of the base": ("read", "base", errno.EIO, 0, 2),
    "header of the diff": ("read", "diff", errno.EIO, 0, 2),
    "data of the base": ("pread", "base", errno.EIO, 0, 3),
    "data of the diff": ("pread", "diff", errno.EIO, 1, 3),
    "no folder": ("mkdir", "tuned", errno.ENOSPC, 0, 1),
    "no new file": ("open", "tuned", errno.EACCES, 0, 1),
    "no room at first": ("fallocate", "tuned", errno.ENOSPC, 0, 1),
    "no room for data": ("pwrite", "tuned", errno.ENOSPC, 0, 3),
    "no room for the journal and side files": ("write", "tuned", errno.EDQUOT, 0, 3),
    "broken disk": ("pwrite", "tuned", errno.EIO, 1, 3),
    "sync": ("fsync", "tuned", errno.EIO, 0, 1),
    "close": ("close", "tuned", errno.EIO, 0, 1),
    "rename": ("rename", "tuned", errno.EIO, 0, 1),
    "remove": ("unlink", "tuned", errno.EIO, 0, 1),
    "disk becomes read-only": ("open mkdir pwrite write fsync rename unlink rmdir", "tuned", errno.EROFS, 1, 4),
}


@pytest.mark.parametrize("case", SWEEPS)
def test_every_call_that_fails(shim: Path, root: Path, case: str) -> None:
    calls, part, number, sticky, stride = SWEEPS[case]
    *faulty, last = faulty_recover.start(shim, "sweep", root, calls, part, number, sticky, stride)
    assert faulty, "no call was reached"
    for facts in faulty:
        if facts["error"] is None:  # a close of what is only read, or of the journal, harms nothing
            assert calls == "close"
            assert facts["verified"] is True
            continue
        assert facts["error"] == ("OutputError" if part == "tuned" else "CheckpointError"), facts
        assert str(root / part) in facts["message"]
        assert os.strerror(number) in facts["message"] or "is absent" in facts["message"]
        assert facts["inputs_same"]
        if calls == "unlink":  # the last of all: the journal of a result that is whole
            assert facts["verified"] is True
        elif sticky and part == "tuned":  # nor could it be removed
            assert facts["verified"] is not False
        else:
            assert facts["left"] is None
    assert last["error"] is None
    assert last["verified"] is True


RESUMED = [
    "no new file",
    "no room at first",
    "no room for data",
    "no room for the journal and side files",
    "sync",
    "rename",
]


@pytest.mark.parametrize("case", [*RESUMED, "disk becomes read-only"])
def test_with_resume_what_is_finished_outlives_every_call_that_fails(shim: Path, root: Path, case: str) -> None:
    calls, _, number, sticky, stride = SWEEPS[case]
    *faulty, last = faulty_recover.start(shim, "resumed", root, calls, number, sticky, stride)
    assert faulty, "no call was reached"
    for facts in faulty:
        assert facts["error"] == "OutputError", facts
        assert facts["verified"] is not False  # what a reader takes for a model is one
        kept = [line for line in facts["told"] if "--resume" in line]
        assert len(kept) == bool(facts["noted"]), facts
        if facts["noted"]:
            assert kept[0].startswith(f"{root / 'tuned'} keeps {len(facts['noted'])} of "), facts
        elif not sticky:  # nothing was finished, and a disk that fails for good may have refused to remove it
            assert facts["left"] is None
        assert facts["same"]
        assert facts["then"]["resumed"] == len(facts["noted"])
        assert not facts["redone"]
    assert last["error"] is None
    assert last["same"]


@pytest.mark.parametrize("most", [1000, 4096, 5000])
def test_short_reads_and_writes_change_nothing(shim: Path, root: Path, most: int) -> None:
    (facts,) = faulty_recover.start(shim, "short", root, most)
    assert facts["hits"] > 100
    shutil.rmtree(root / "tuned")
    wanted = recover(root / "base", root / "diff", root / "tuned", device="cpu", progress=False).manifest.tensors
    assert facts["tensors"] == {name: record.sha256 for name, record in wanted.items()}
    assert facts["verified"] is True


def check_kills(found: list[dict]) -> None:
    assert all(facts["same"] and facts["resumed"]["verified"] for facts in found)
    assert all(facts["inputs_same"] and facts["untouched"] and not facts["redone"] for facts in found)
    assert all(facts["verified"] is not False for facts in found)  # what a reader takes for a model is one
    for facts in found:
        told = facts["plain"]["message"]
        if any(name.endswith(".partial") for name in facts["left"]):
            assert "--resume" in told
            assert facts["resumed"]["resumed"] == facts["noted"]
        elif facts["left"]:
            assert "is not empty" in told
        else:
            assert not told


def test_killed_at_every_few_calls_then_resumed(shim: Path, root: Path) -> None:
    found = faulty_recover.start(shim, "kills", root, 1000, 4, 0)
    check_kills(found)
    assert sum(facts["killed"] for facts in found) >= 15
    assert not found[-1]["killed"]  # it went past the last call
    assert max(facts["noted"] for facts in found) == len(found[-1]["resumed"]["tensors"])


def test_killed_at_random_times_then_resumed(shim: Path, root: Path) -> None:
    check_kills(faulty_recover.start(shim, "kills", root, 20, 0, 1))


@pytest.mark.slow
@pytest.mark.parametrize(("cases", "stride"), [(1000, 1), (300, 0)], ids=["every call", "random times"])
def test_killed_hundreds_of_times(shim: Path, tmp_path: Path, cases: int, stride: int) -> None:
    cfg = tiny.config(num_hidden_layers=4, vocab_size=300, hidden_size=128, intermediate_size=256)
    tiny.write_pair(tmp_path, cfg=cfg)
    found = faulty_recover.start(shim, "kills", tmp_path, cases, stride, 2)
    check_kills(found)
    died = sum(facts["killed"] for facts in found)
    print(f"{died} of {len(found)} runs killed, {sum(facts['killed_again'] for facts in found)} times more in resuming")
    assert died > cases // 4


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"x")


def overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(bytes(4))


def overwrite_and_date_back(path: Path) -> None:
    stat = path.stat()
    overwrite(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def replace_by_another(path: Path) -> None:
    shutil.copy2(path, path.with_name("new"))
    os.replace(path.with_name("new"), path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


CHANGES = [append, overwrite, overwrite_and_date_back, replace_by_another, cut, os.unlink]


@pytest.mark.parametrize("side", ["base", "diff"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_source_that_changes_while_it_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], side: str
) -> None:
    victim = sorted((root / side).glob("*.bin"))[-1]
    read, seen, lock = TensorReader.read, [], threading.Lock()

    def meddling(self: TensorReader, begin: int, end: int, buffer: memoryview) -> memoryview:
        with lock:
            if self.entry.path == victim:
                seen.append(begin)
                if len(seen) == 4:
                    change(victim)
        return read(self, begin, end, buffer)

    monkeypatch.setattr(TensorReader, "read", meddling)
    with pytest.raises(CheckpointError, match=str(victim)):
        recover(root / "base", root / "diff", root / "tuned", device="cpu", progress=False)
    assert not (root / "tuned").exists()


def test_a_source_that_changes_after_its_header_was_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies where in it was decided then."""
    victim = sorted((root / "diff").glob("*.bin"))[0]

    def late(*arguments: object) -> object:
        overwrite_and_date_back(victim)
        return Output(*arguments)

    monkeypatch.setattr("baize_engine.recovery.recover.Output", late)
    with pytest.raises(CheckpointError, match=rf"{victim} changed while it was being read"):
        recover(root / "base", root / "diff", root / "tuned", device="cpu", progress=False)
    assert not (root / "tuned").exists()


def test_a_second_recovery_into_the_same_folder_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, diff, out = root / "base", root / "diff", root / "tuned"
    write, waiting, go_on = CheckpointWriter.write, threading.Event(), threading.Event()

    def slow(self: CheckpointWriter, name: str, offset: int, view: memoryview) -> None:
        waiting.set()
        go_on.wait(60)
        write(self, name, offset, view)

    monkeypatch.setattr(CheckpointWriter, "write", slow)
    first = threading.Thread(target=recover, args=(base, diff, out), kwargs={"device": "cpu", "progress": False})
    first.start()
    try:
        assert waiting.wait(60)
        for resume in (False, True):
            with pytest.raises(OutputError, match="another recovery is writing here"):
                recover(base, diff, out, device="cpu", progress=False, resume=resume)
    finally:
        go_on.set()
        first.join()
    assert verify(out).ok


@pytest.mark.parametrize("exists", [False, True])
def test_of_two_that_begin_together_one_has_the_folder(root: Path, exists: bool) -> None:
    for number in range(10):
        out, together, results = root / "out" / str(number), threading.Barrier(2), []
        (out if exists else out.parent).mkdir(parents=True, exist_ok=True)

        def run(out: Path = out, together: threading.Barrier = together, results: list[object] = results) -> None:
            together.wait()
            try:
                results.append(recover(root / "base", root / "diff", out, device="cpu", progress=False).folder)
            except OutputError as error:
                results.append(str(error))

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told = [result for result in results if result != out]
        assert len(results) == 2
        assert len(told) == 1
        assert "other recovery" in told[0] or "not empty" in told[0]  # or it began when the first had finished
        assert str(out) in told[0]
        assert verify(out).ok
