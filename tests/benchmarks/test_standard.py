"""`make bench`: the lines that it makes of the scripts' reports, and one step of it on the tiny preset."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import standard
from assets import REPO
from gpu_plan import Step
from gpu_run import run

DECODE: list[dict[str, Any]] = [
    {"engine": "baize int8", "kind": "int8", "batch": 1, "context": 20, "tok/s": 6.0, "GB/s": 12.0, "read_GB/s": 20.0,
     "share": 0.6, "ratio": 1.0},
    {"engine": "slow", "kind": "int8", "batch": 1, "context": 20, "tok/s": 2.0, "ratio": 3.0},
    {"engine": "fast", "kind": "int8", "batch": 1, "context": 20, "tok/s": 4.0, "ratio": 1.5},
    {"engine": "fast", "kind": "int8", "batch": 8, "context": 20, "tok/s": 40.0, "ratio": 1.5},
    {"engine": "other", "kind": "int4", "batch": 1, "context": 20, "tok/s": 90.0, "ratio": 1.0},
    {"engine": "absent", "kind": "int8", "tok/s": "not installed"},
]  # fmt: skip


def test_the_fastest_peer_of_the_same_kind_stands_beside() -> None:
    (line,) = standard.decode_lines({"rows": DECODE})
    assert line == {"what": "decode int8, batch 1, context 20", "figure": 6.0, "unit": "tok/s", "ceiling": 10.0, "share": 0.6,
                    "peer": "fast", "its": 4.0, "ratio": 1.5}  # fmt: skip
    (alone,) = standard.decode_lines({"rows": [*DECODE[:1], *DECODE[-1:]]})
    assert (alone["figure"], alone["peer"], alone["ratio"]) == (6.0, "", "")


def test_prefill_has_the_ceiling_of_arithmetic() -> None:
    row = {"engine": "baize int4", "kind": "int4", "tokens": 512, "tok/s": 50.0, "GFLOP/s": 100.0, "peak_GFLOP/s": 160.0,
           "share": 0.625, "ratio": 1.0}  # fmt: skip
    (line,) = standard.prefill_lines({"rows": [row]})
    assert (line["what"], line["ceiling"], line["share"]) == ("prefill int4, 512 tokens", 80.0, 0.625)


def test_starts_and_recovery_compare_seconds() -> None:
    rows = [
        {"engine": "baize int8", "to_first_token_s": 0.5, "runs": 3},
        {"engine": "baize int8 at load", "to_first_token_s": 4.0, "runs": 3},
        {"engine": "llama.cpp Q8_0", "to_first_token_s": 1.0, "runs": 3},
        {"engine": "ctranslate2 int8", "to_first_token_s": "not installed"},
    ]
    saved, at_load = standard.start_lines({"rows": rows})
    assert (saved["what"], saved["peer"], saved["ratio"]) == ("to the first token, int8", "llama.cpp Q8_0", 2.0)
    assert (at_load["what"], at_load["ratio"]) == ("to the first token, int8 at load", 0.25)
    walls = [
        {"method": "recover", "wall_s": 2.0},
        {"method": "copy", "wall_s": 1.5},
        {"method": "reference", "wall_s": 9.0},
    ]
    (line,) = standard.recover_lines({"methods": walls, "cache": "cold"})
    assert (line["figure"], line["ceiling"], line["share"], line["ratio"]) == (2.0, 1.5, 0.75, 4.5)
    (line,) = standard.recover_lines({"methods": walls[:2], "cache": "warm"})
    assert (line["what"], line["peer"]) == ("recover, warm cache", "")


def test_speculation_stands_against_plain_decoding() -> None:
    place = {"model": "demo model", "kind": "int8", "what": "ngram", "batch": 4, "prompts": "json_echo"}
    rows = [
        {"model": "demo model", "kind": "int8", "what": "step", "rows": 2, "ms": 3.0, "to_1": 1.2},
        {**place, "speedup": 2.0, "ceiling": 2.5, "reached": 0.8},
        {**place, "problem": "too few prompts"},
    ]
    (line,) = standard.speculate_lines({"rows": rows})
    assert line["what"] == "speculate ngram int8, batch 4, json_echo (demo model)"
    assert (line["figure"], line["unit"], line["ceiling"], line["share"]) == (2.0, "x plain", 2.5, 0.8)


def test_kernels_and_diff_add() -> None:
    rows = [
        {"op": "gate_up", "kind": "int4", "rows": 1, "us": 20.0, "share": 0.5, "torch_us": 60.0, "speedup": 3.0},
        {"op": "gate_up", "kind": "int4", "rows": 512, "us": 9e3, "share": 0.5, "torch_us": 9e3, "speedup": 1.0},
        {"op": "sample greedy", "kind": "float32", "rows": 1, "us": 2.0, "share": 0.5, "torch_us": 2.0, "speedup": 1.0},
    ]
    of_step = {"int4 x1": {"sample greedy": 0.01, "sample top_k top_p": 0.05}}
    op, greedy, drawn = standard.kernel_lines({"rows": rows, "of_step": of_step})
    assert (op["what"], op["ceiling"], op["ratio"]) == ("gate_up int4, 1 row", 10.0, 3.0)
    assert (greedy["figure"], drawn["figure"]) == (pytest.approx(1), pytest.approx(5))
    types = {"types": "float16+float32->float16", "ceiling_GB/s": 40.0}
    added = [
        {"implementation": "cpp-scalar", "threads": 1, "GB/s": 5.0, "share": 0.1, **types},
        {"implementation": "cpp-avx2", "threads": 2, "GB/s": 20.0, "share": 0.5, **types},
        {"implementation": "torch", "threads": 2, "GB/s": 30.0, "share": 0.7, **types},
    ]
    (line,) = standard.diff_add_lines({"rows": added})
    assert (line["figure"], line["share"], line["ratio"]) == (20.0, 0.5, pytest.approx(2 / 3))


def test_rows_that_failed_have_no_lines() -> None:
    failed = {"engine": "baize int4", "kind": "int4", "batch": 1, "context": 20, "problem": "out of memory"}
    sampled = {**DECODE[0], "engine": "baize int8 sampled", "tok/s": 99.0}
    greedy, drawn = standard.decode_lines({"rows": [failed, *DECODE, sampled]})
    assert (greedy["peer"], greedy["its"]) == ("fast", 4.0)  # ours is nobody's peer
    assert (drawn["what"], drawn["figure"], drawn["peer"]) == ("decode int8 sampled, batch 1, context 20", 99.0, "")
    assert list(standard.prefill_lines({"rows": [failed]})) == []
    assert list(standard.start_lines({"rows": [failed]})) == []
    assert list(standard.kernel_lines({"rows": [{"op": "head", "rows": 1, "problem": "wrong"}], "of_step": {}})) == []
    wrong = {"implementation": "cpp-avx2", "threads": 2, "types": "float16+float32->float16", "problem": "its bits"}
    right = {**wrong, "implementation": "torch", "GB/s": 30.0, "share": 0.7, "ceiling_GB/s": 40.0}
    assert list(standard.diff_add_lines({"rows": [wrong, right]})) == []


def test_a_failed_step_keeps_its_rows_and_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C is the end of all; what was measured before is shown, and written after every step."""
    file, written = tmp_path / "all.json", []
    outcomes = {
        "diff_add": {"code": 1, "seconds": 1.0, "problem": "exit code 1", "report": {"rows": []}},
        "decode": {"code": 1, "seconds": 2.0, "problem": "exit code 1", "report": {"rows": DECODE}},
        "prefill": {"code": None, "seconds": 3.0, "problem": "interrupted"},
    }

    def step(one: Step, seconds: float, shown: bool) -> dict[str, Any]:
        written.append(set(json.loads(file.read_text())["steps"]) if file.exists() else set())
        return outcomes[one.name]

    monkeypatch.setattr(standard, "run", step)
    monkeypatch.setattr(
        sys, "argv", ["standard.py", "--json", str(file), "--only", "diff_add", "decode", "prefill", "start"]
    )
    assert standard.main() == 1
    assert written == [set(), {"diff_add"}, {"diff_add", "decode"}]
    shown = capsys.readouterr().out.splitlines()
    assert ["decode int8, batch 1" in line for line in shown] == [number in (3, 7) for number in range(10)]
    assert "failed: diff_add, decode, prefill" in shown[-1]
    assert json.loads(file.read_text())["steps"] == outcomes


@pytest.mark.usefixtures("forked_with_transformers")
def test_one_step_and_the_table(tmp_path: Path) -> None:
    command = [sys.executable, str(REPO / "benchmarks/standard.py"), "--preset", "tiny", "--only", "prefill"]
    done = subprocess.run([*command, "--json", str(tmp_path / "all.json")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    head, *lines = done.stdout.partition("\n\n")[2].splitlines()
    assert head.split() == ["what", "figure", "unit", "ceiling", "share", "peer", "its", "ratio"]
    assert [line.split()[:2] for line in lines[:3]] == [["prefill", f"{kind},"] for kind in standard.KINDS]
    assert lines[-1].startswith("tiny, ")
    report = json.loads((tmp_path / "all.json").read_text())["steps"]["prefill"]["report"]
    assert {row["kind"] for row in report["rows"]} == set(standard.KINDS)


def test_a_quiet_step_prints_its_failure_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Step("fine", ("-c", "print('fine'); print('{}')"), 60), 60, shown=False)["report"] == {}
    assert "fine" not in capsys.readouterr().out
    assert run(Step("bad", ("-c", "print('broken'); exit(2)"), 60), 60, shown=False)["code"] == 2
    assert "broken" in capsys.readouterr().out
