"""Bytes counted by ncu: its table as CSV, a stand-in for the program itself, and what is said where it cannot count."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import attribution
import ncu
import pytest
from attribution import Launch, Mismatch, Place
from ncu import Counted, NcuFailed
from processes import ends
from step_clock import SPEND, StepClock

from baize_engine.model.cost import OpCost

# `ncu --csv --page raw --print-units base`: a head, a line of units, and a line a kernel, after lines of its own
TABLE = """\
==PROF== Connected to process 4711 (/usr/bin/python3.12)
==PROF== Profiling "_embed_kernel" - 0: 0%....50%....100% - 1 pass
==PROF== Profiling "_product_kernel" - 1: 0%....50%....100% - 1 pass
==PROF== Disconnected from process 4711
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"dram__bytes_read.sum","dram__bytes_write.sum"
"","","","","","","","","","","","byte","byte"
"0","4711","python3.12","127.0.0.1","_embed_kernel","1","7","(128, 1, 1)","(1, 5, 1)","0","9.0","10,752","0"
"1","4711","python3.12","127.0.0.1","_product_kernel","1","7","(64, 1, 1)","(1, 160, 1)","0","9.0","141,557,760","20480"
"""
COUNTED = [Counted("_embed_kernel", (1, 5, 1), 10752, 0), Counted("_product_kernel", (1, 160, 1), 141557760, 20480)]
LAUNCHES = [
    Launch(Place("embed", None), "_embed_kernel", (1, 5, 1)),
    Launch(Place("linear_add down", 0), "_product_kernel", (1, 160, 1)),
]


def test_parse() -> None:
    assert ncu.parse(TABLE) == COUNTED


def test_units_are_read() -> None:
    """As without --print-units base."""
    text = TABLE.replace('"byte","byte"', '"Mbyte","Kbyte"').replace("141,557,760", "141.56").replace("20480", "20.48")
    product = ncu.parse(text)[1]
    assert (product.read, product.written) == pytest.approx((141.56e6, 20480))


def test_a_table_without_grids() -> None:
    """Older versions do not tell them: kernels are then checked by name alone."""
    text = TABLE.replace('"Block Size","Grid Size",', "").replace('"(128, 1, 1)","(1, 5, 1)",', "")
    text = text.replace('"(64, 1, 1)","(1, 160, 1)",', "").replace(
        '"","","","","","","","","","","","byte"', '"","","","","","","","","","byte"'
    )
    found = ncu.parse(text)
    assert [(each.kernel, each.grid) for each in found] == [("_embed_kernel", ()), ("_product_kernel", ())]
    assert [row["op"] for row in ncu.rows(found, LAUNCHES, {})] == ["embed", "linear_add down"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns nothing; wanted Kernel Name, dram__bytes_read.sum"),
        (
            TABLE.replace("dram__bytes_write.sum", "dram__bytes.sum"),
            r"has the columns ID, Process ID.*wanted Kernel Name",
        ),
        (TABLE.replace("20480", "n/a"), "ncu counted 'n/a' 'byte', wanted a number of byte, Kbyte"),
        (TABLE.replace('"byte","byte"', '"sector","byte"'), "ncu counted '10,752' 'sector'"),
    ],
)
def test_tables_that_are_not_understood(text: str, message: str) -> None:
    with pytest.raises(NcuFailed, match=message):
        ncu.parse(text)


def test_rows_beside_the_model() -> None:
    embed, down = ncu.rows(COUNTED, LAUNCHES, {"linear_add down": OpCost("linear_add down", 1, 141_600_000, 10_240)})
    assert embed == {
        "op": "embed", "kernel": "_embed_kernel 1x5x1", "calls": 1, "read": 10752, "written": 0,
    }  # fmt: skip
    assert (down["modelled_read"], down["modelled_written"]) == (141_600_000, 10_240)
    assert down["of_modelled"] == pytest.approx(141_578_240 / 141_610_240)
    with pytest.raises(Mismatch, match="kernel 0 of the step is _embed_kernel 1x5x1, wanted _product_kernel"):
        ncu.rows(COUNTED, LAUNCHES[::-1], {})
    with pytest.raises(Mismatch, match="has 1 kernels, the plan launched 2"):
        ncu.rows(COUNTED[:1], LAUNCHES, {})
    assert attribution.by_name([]) == []


def test_kernels_of_an_op_apart() -> None:
    """Attention and its join, in two layers."""
    names = ("_attention_kernel", (1, 8, 2), 1000.0, 10.0), ("_join_kernel", (1, 8, 1), 20.0, 5.0)
    launches = [Launch(Place("attention", layer), *each[:2]) for layer in range(2) for each in names]
    counted = [Counted(*each) for each in names * 2]
    attention, join = ncu.rows(counted, launches, {"attention": OpCost("attention", 1, 1500, 15)})
    assert attention == {
        "op": "attention", "kernel": "_attention_kernel 1x8x2", "calls": 2, "read": 2000, "written": 20, "op_read": 2040,
        "op_written": 30, "modelled_read": 1500, "modelled_written": 15, "of_modelled": pytest.approx(2070 / 1515),
    }  # fmt: skip
    assert join == {"op": "attention", "kernel": "_join_kernel 1x8x1", "calls": 2, "read": 40, "written": 10}


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A program `ncu` on the PATH, `body` being Python; `words` are its arguments."""
    program = folder / "ncu"
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\nwords = sys.argv[1:]\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_ncu_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "words"
    body = (
        f"Path({str(said)!r}).write_text('\\n'.join(words))\n"
        f"Path(words[words.index('--log-file') + 1]).write_text({TABLE!r})\nprint('a report of the script')"
    )
    stand_in(tmp_path, monkeypatch, body)
    assert ncu.count(["script.py", "--preset", "tiny"]) == COUNTED
    words = said.read_text().splitlines()
    assert words[-4:] == [sys.executable, "script.py", "--preset", "tiny"]
    for option in ("--csv", "--page raw", "--clock-control none", "--cache-control none", "--profile-from-start off"):
        assert option in " ".join(words)
    assert words[words.index("--metrics") + 1] == "dram__bytes_read.sum,dram__bytes_write.sum"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "Path(words[words.index('--log-file') + 1]).write_text('==ERROR== ERR_NVGPUCTRPERM - no permission\\n')\n"
            "sys.exit(1)",
            "ncu ended with exit code 1: ==ERROR== ERR_NVGPUCTRPERM - no permission",
        ),
        ("print('RuntimeError: out of memory', file=sys.stderr); sys.exit(9)", "code 9: RuntimeError: out of memory"),
        ("print('==ERROR== unrecognised option'); sys.exit(1)", "code 1: ==ERROR== unrecognised option"),
        ("pass", "ncu ended with exit code 0: it said nothing"),
        (f"{SPEND}spend(60)", "ncu was not done after 1 s"),
    ],
)
def test_ncu_that_cannot_count(
    body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_clock: StepClock
) -> None:
    stand_in(tmp_path, monkeypatch, body)
    step_clock.rule(monkeypatch)
    monkeypatch.setattr(ncu, "SECONDS", 1)
    with pytest.raises(NcuFailed, match=message):
        ncu.count(["script.py"])


def test_the_script_beneath_ncu_does_not_outlive_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_clock: StepClock
) -> None:
    """It holds a model's memory on the GPU."""
    child = tmp_path / "child"
    body = (
        "import subprocess\n"
        f"beneath = subprocess.Popen(['sleep', '60'])\nPath({str(child)!r}).write_text(str(beneath.pid))\n{SPEND}spend(60)"
    )
    stand_in(tmp_path, monkeypatch, body)
    step_clock.rule(monkeypatch)
    monkeypatch.setattr(ncu, "SECONDS", 3)
    with pytest.raises(NcuFailed, match="ncu was not done after 3 s"):
        ncu.count(["script.py"])
    assert ends(int(child.read_text()))


def test_ncu_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NcuFailed, match=r"ncu is absent \(not on the PATH\)"):
        ncu.count(["script.py"])
