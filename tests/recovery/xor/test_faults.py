"""`xor` with a failing disk, or killed at any call: nothing half-made, no wrong file under its last name; resume goes on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import faulty_recover
import faulty_xor
import pytest
import tiny
from published_xor import publish_by_file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    cfg = tiny.config(num_hidden_layers=1)
    tiny.write_model(tmp_path / "base", cfg, tiny.state(cfg), "bin", 2)
    tiny.write_model(tmp_path / "wanted", cfg, tiny.state(cfg, 1), "bin", 2)
    publish_by_file(tmp_path / "wanted", tmp_path / "base", tmp_path / "payload", packed=True)
    return tmp_path


SWEEPS = {
    "payload cannot be opened": ("open", "payload", errno.EACCES),
    "base vanishes": ("open", "base", errno.ENOENT),
    "payload cannot be read": ("read pread", "payload", errno.EIO),
    "base cannot be read": ("read pread", "base", errno.EIO),
    "no folder": ("mkdir", "tuned", errno.ENOSPC),
    "no new file": ("open", "tuned", errno.EACCES),
    "no room for data": ("pwrite", "tuned", errno.ENOSPC),
    "no room for the journal and the manifest": ("write", "tuned", errno.EDQUOT),
    "sync": ("fsync", "tuned", errno.EIO),
    "close": ("close", "tuned", errno.EIO),
    "rename": ("rename", "tuned", errno.EIO),
}


@pytest.mark.parametrize("case", SWEEPS)
def test_every_call_that_fails(shim: Path, root: Path, case: str) -> None:
    calls, part, number = SWEEPS[case]
    *faulty, last = faulty_recover.start(shim, "sweep", root, calls, part, number, script=faulty_xor.__file__)
    assert faulty, "no call was reached"
    for facts in faulty:
        if facts["error"] is None:  # a close of what is only read, a probe of the page cache
            assert facts["good"], facts
            continue
        read_again = ".partial cannot be read" in facts["message"]  # to see whether it is what its name says
        assert facts["error"] == ("OutputError" if part == "tuned" and not read_again else "CheckpointError"), facts
        assert str(root / part) in facts["message"]
        assert os.strerror(number) in facts["message"] or "is absent" in facts["message"]
        assert facts["left"] is None
    assert any(facts["error"] for facts in faulty)
    assert last["good"]


def test_killed_at_every_few_calls_then_resumed(shim: Path, root: Path) -> None:
    found = faulty_recover.start(shim, "kills", root, 3, script=faulty_xor.__file__)
    assert sum(facts["killed"] for facts in found) >= 15
    assert not found[-1]["killed"]
    for facts in found:
        assert facts["named_are_whole"]
        assert facts["good"], facts
        if any(name.endswith(".partial") for name in facts["left"] or []):
            assert facts["resumed"]["resumed"] == facts["noted"]  # nothing that was finished is redone
    assert max(facts["noted"] for facts in found) == 4
