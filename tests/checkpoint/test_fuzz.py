"""A bounded run of the fuzzer; `python tests/helpers/fuzz.py --cases 1000000` is the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fuzz
import pytest


@pytest.mark.parametrize("seed", [0])
def test_no_case_breaks_a_promise(tmp_path: Path, seed: int) -> None:
    command = [sys.executable, fuzz.__file__, "--cases", "6000", "--seed", str(seed), "--keep", tmp_path / "case"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "torch" in done.stdout


def test_broken_promises_are_noticed(tmp_path: Path) -> None:
    """The fuzzer's own eyes: each of these must end a run."""
    code = """if True:
        import os, sys, fuzz, fuzz_readers
        from baize_engine.errors import CheckpointError
        what = sys.argv[2]
        def read(path):
            if b"os" not in path.read_bytes(): return []
            if what == "runs": os.system("true")
            if what == "opens": open("/etc/hostname")
            if what == "raises": raise KeyError("x")
            if what == "nameless": raise CheckpointError("broken")
            if what == "wordy": raise CheckpointError(f"{path}" + "x" * 9999)
            if what == "hangs":
                while True: pass
        fuzz.SECONDS = 1
        fuzz_readers.torch_file.read_torch = read
        sys.argv[1:] = ["torch", "--cases", "3000", "--keep", sys.argv[1]]
        sys.exit(fuzz.main())
    """
    for what in ("runs", "opens", "raises", "nameless", "wordy", "hangs"):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "case", what],
            capture_output=True,
            text=True,
            cwd=Path(fuzz.__file__).parent,
        )
        assert done.returncode == 1, (what, done.stdout, done.stderr)
        assert (tmp_path / "case").exists()
        (tmp_path / "case").unlink()
