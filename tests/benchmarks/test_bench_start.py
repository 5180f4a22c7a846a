"""bench_start on the tiny preset: every way to load, each in its own process, its token checked."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import bench_start
import peers
import pytest
from bench_start import Start
from common import Run
from preloaded import WithTransformers

STAMPS = '{"imported": 1.0, "loaded": 2.5, "first": 4.0, "token": 7, "own": 1024}'


def run_forked(command: Sequence[str], stderr: int | IO[bytes]) -> Run:
    """As `run_child`, of a process that torch and transformers are imported for."""
    begin = time.perf_counter()
    with WithTransformers(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        said, _ = process.communicate(timeout=300)
    return Run(time.perf_counter() - begin, 0.0, process.peak, process.returncode, said)


def test_every_way_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of them as a user has it; the others without the seconds that their imports take."""
    ways = iter([bench_start.run_child])
    monkeypatch.setattr(bench_start, "run_child", lambda *called: next(ways, run_forked)(*called))
    words = ["--preset", "tiny", "--runs", "1", "--peers", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench_start.py", *words])
    assert bench_start.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["bench"], found["prompt"]) == ("start", 16)
    rows = {row["engine"]: row for row in found["rows"]}
    wanted = {peer.name for kind in bench_start.SAVED for peer in peers.PEERS[kind]}
    ours = {
        *(f"baize {kind}" for kind in bench_start.SAVED),
        *(f"baize generate {kind}" for kind in bench_start.SAVED),
        *(f"baize {kind} at load" for kind in bench_start.AT_LOAD),
    }
    assert rows.keys() == wanted | ours
    absent = {name for kind in bench_start.SAVED for name in peers.installed(kind, peers.ENGINES)[1]}
    assert {name for name, row in rows.items() if isinstance(row["start_to_token_s"], str)} == absent
    for name in rows.keys() - absent:
        row = rows[name]
        if name.startswith("baize generate"):
            assert row["start_to_token_s"] >= 0 < row["process_s"]
            continue
        assert all(row[key] > 0 for key in ("process_s", "start_and_imports_s", "of_it_load_s"))
        assert row["start_and_imports_s"] + row["to_first_token_s"] == pytest.approx(row["start_to_token_s"])
        assert row["peak_MiB"] > row["own_MiB"] > 1


def test_a_failing_process_and_a_wrong_token_end_the_run() -> None:
    tokens: list[int] = []

    def check(name: str, token: int, kind: str) -> None:
        tokens.append(token)

    found = bench_start.run(Start("one", "int8", [sys.executable, "-S", "-c", f"print('{STAMPS}')"]), check)
    assert (found["first"], found["load"], found["imports"], tokens) == (3.0, 1.5, 1.0, [7])
    assert found["since_start"] == 4.0
    with pytest.raises(SystemExit, match=r"(?s)two: its process ended with 3.*out of order"):
        bench_start.run(Start("two", "int8", [sys.executable, "-c", "print('out of order'); exit(3)"]), check)


def test_a_start_that_fails_takes_no_further_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, asked = bench_start.run, []

    def run(start: Start, check: object) -> dict[str, float]:
        asked.append(start.name)
        if start.name == "baize int8" and asked.count(start.name) == 2:
            raise SystemExit("its process ended with 1")
        if start.is_baize:
            answer = '{"completions": [{"token_ids": [7]}]}'
            return real(replace(start, command=[sys.executable, "-S", "-c", f"print('{answer}')"]), lambda *_: None)
        return real(Start(start.name, start.kind, [sys.executable, "-S", "-c", f"print('{STAMPS}')"]), lambda *_: None)

    monkeypatch.setattr(bench_start, "run", run)
    small = ["--preset", "tiny", "--runs", "3", "--kinds", "int8", "float16", "--at_load", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench_start.py", *small])
    assert bench_start.main() == 1
    failed, typed, measured, typed_float = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert failed == {"engine": "baize int8", "problem": "its process ended with 1"}
    assert (typed["engine"], typed["runs"]) == ("baize generate int8", 3)
    assert typed_float["start_to_token_s"] > 0 < typed_float["process_s"]
    assert (measured["engine"], measured["runs"], measured["to_first_token_s"]) == ("baize float16", 3, 3.0)
    assert asked.count("baize int8") == 2


def test_files_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(bytes(100))
    bench_start.read_once(tmp_path)
    bench_start.read_once(tmp_path / "part")
    with pytest.raises(FileNotFoundError):
        bench_start.read_once(tmp_path / "absent")
