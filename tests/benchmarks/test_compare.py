"""Two profiles side by side, and a profile as a page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import compare
import profile_step
import pytest
import summary

OP = {"calls": 40, "p20": 1.0, "p80": 2.0, "bytes": 1000, "flops": 10}
A: dict[str, Any] = {
    "bench": "profile_step", "device": "NVIDIA H100 80GB HBM3", "commit": "aaa", "preset": "13b", "kind": "float16",
    "batch": 1, "context": 128, "versions": {"torch": "2.11", "triton": "3.6.0"}, "title": "decode step: 13b",
    "rows": [
        {"op": "step", "us": 9200.0, "of_specified": 0.83, "tok/s": 108.7, **OP},
        {"op": "gate_up", "us": 4000.0, "in_step_us": 4100.0, "share": 0.9, **OP},
        {"op": "attention", "us": 280.0, **OP},
        {"part": "ncu", "problem": "no counters"},
    ],
}  # fmt: skip
B = A | {
    "commit": "bbb", "batch": 8, "versions": {"torch": "2.11", "triton": "3.7.1"}, "tuned": "h100.json",
    "rows": [
        {"op": "step", "us": 8832.0, "of_specified": 0.86, "tok/s": 113.2, **OP},
        {"op": "gate_up", "us": 4400.0, "in_step_us": 4000.0, "share": 0.8, **OP},
        {"op": "linear_add o", "us": 5.0, **OP},
    ],
}  # fmt: skip


def test_rows_side_by_side() -> None:
    step, gate_up, attention, o = compare.rows(A, B)
    assert step == {
        "op": "step", "us_A": 9200.0, "us_B": 8832.0, "change_%": pytest.approx(-4), "of_specified_A": 0.83,
        "of_specified_B": 0.86,
    }  # fmt: skip
    assert gate_up["change_%"] == pytest.approx(10)
    assert (gate_up["in_step_us_A"], gate_up["in_step_us_B"], gate_up["share_A"]) == (4100, 4000, 0.9)
    assert attention == {"op": "attention", "us_A": 280.0}  # only one has it
    assert o == {"op": "linear_add o", "us_B": 5.0}


def test_conditions_that_are_not_the_same() -> None:
    assert compare.differing(A, B) == [
        {"condition": "commit", "A": "aaa", "B": "bbb"}, {"condition": "batch", "A": 1, "B": 8},
        {"condition": "tuned", "A": "not said", "B": "h100.json"}, {"condition": "triton", "A": "3.6.0", "B": "3.7.1"},
    ]  # fmt: skip
    assert compare.differing(A, A) == []


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["profile_step.py", *map(str, words)])
    return profile_step.main()


def test_compare_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, content in (("a", A), ("b", B)):
        (tmp_path / name).write_text(json.dumps(content))
    monkeypatch.setattr(profile_step, "profile", lambda *_: pytest.fail("it measured"))
    assert run(monkeypatch, "--compare", tmp_path / "a", tmp_path / "b", "--json", tmp_path / "c") == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert found == json.loads((tmp_path / "c").read_text())
    assert found["rows"] == compare.rows(A, B)
    assert lines[0].split()[:4] == ["op", "us_A", "us_B", "change_%"]
    assert any(line.split() == ["batch", "1", "8"] for line in lines)
    assert run(monkeypatch, "--compare", tmp_path / "a", tmp_path / "a") == 0
    assert "all conditions are the same" in capsys.readouterr().out


def test_compare_as_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("a", A), ("b", B)):
        (tmp_path / name).write_text(json.dumps(content))
    assert run(monkeypatch, "--compare", tmp_path / "a", tmp_path / "b", "--markdown", tmp_path / "page.md") == 0
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("# Two decode steps\n\n- A: decode step: 13b\n- B: decode step: 13b\n\n| op | us_A |")
    assert "| step | 9200 | 8832 | -4 | 83.0% | 86.0% |" in page
    assert "| batch | 1 | 8 |" in page
    assert run(monkeypatch, "--compare", tmp_path / "a", tmp_path / "a", "--markdown", tmp_path / "page.md") == 0
    assert (tmp_path / "page.md").read_text().endswith("## Not the same\n\nall conditions are the same\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--compare a b --picture p.png", "--compare makes no file for --picture"),
        ("--compare a b --trace t --json j", "--compare makes no file for --trace"),
        ("--from_json a --picture p.png --json j --trace t", "--from_json makes no file for --json, --trace"),
        ("--from_json a --compare a b", "argument --compare: not allowed with argument --from_json"),
        ("--nvtx --markdown m.md", "--nvtx makes no file for --markdown"),
        ("--capture_steps 1:2 --json j", "--capture_steps makes no file for --json"),
    ],
)
def test_files_that_would_not_be_made(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *words.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["json", "trace", "markdown", "picture"])
def test_files_that_cannot_be(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(profile_step, "profile", lambda *_: pytest.fail("measured before it refused"))
    for path, message in (
        (tmp_path / "no" / "file", f"the folder {tmp_path / 'no'} does not exist"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, "--preset", "tiny", "--device", "cpu", f"--{option}", path)
        assert f"--{option} {path}: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as a report: .*No such file"),
        ("{", "cannot be read as a report: "),
        ("[]", "is a report of 'list', wanted one of profile_step.py"),
        ('{"bench": "decode"}', "is a report of 'decode', wanted one of profile_step.py"),
    ],
)
def test_files_that_are_no_profile(
    content: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match=f"report.json {message}"):
        run(monkeypatch, "--compare", path, path)
    with pytest.raises(SystemExit, match=f"report.json {message}"):
        run(monkeypatch, "--from_json", path, "--markdown", tmp_path / "page.md")


def test_a_page_of_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = A | {
        "ceilings": {"read_GB/s": 2950.0, "copy_GB/s": 3010.0, "matmul_TFLOP/s": 700.0}, "specified_GB/s": 3350,
        "kernels": [{"op": "gate_up", "kernel": "a|b", "us": 1.0, "share": 0.5}], "events": "kernels", "step_us": 9300.0,
        "gaps_us": 12.0, "notes": ["card not in the table"], "ended": "interrupted",
        "gpu_state": {"before": {"sm_MHz": 345}, "under load": {"sm_MHz": 1755}}, "memory": {"held_GB": 26.0},
        "start": {"second_state_s": 9.5}, "dram": [{"op": "gate_up", "read": 5.0}], "steps": [{"step": 0, "device_us": 9300.0}],
    }  # fmt: skip
    (tmp_path / "a").write_text(json.dumps(more))
    assert run(monkeypatch, "--from_json", tmp_path / "a", "--markdown", tmp_path / "page.md") == 0
    page = (tmp_path / "page.md").read_text()
    assert "- measured ceilings: 2950 GB/s (read), 3010 GB/s (copy), 700 TFLOP/s (matmul)" in page
    assert "**Step: 9200 µs** (p20 1, p80 2), 108.7 tok/s, 83.0% of specified" in page
    assert "| gate_up | 40 | 4000 | 4100 | 90.0% |" in page
    assert "| gate_up | a\\|b | 1 | 50.0% |" in page
    assert "In a step of 9300 µs, 12 of them gaps, under the profiler; waits" in page
    assert "| under load | 1755 |" in page
    assert page.endswith("- card not in the table\n- ncu: no counters\n- the run ended early: interrupted\n")


def test_a_page_says_what_was_not_measured() -> None:
    page = summary.markdown(A | {"rows": [{"part": "model", "problem": "out of memory"}]})
    assert "**Step: not measured**" in page
    assert page.endswith("## Notes\n\n- model: out of memory\n")
