"""`baize recover` as it is typed: paths in pairs, expectations, tolerances, interruption."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import slow_baize
import tiny
from commands import baize
from families import SETTINGS, alpaca_diff, base_state, near_mean, tuned_state, write
from grown_diffs import write_diffs

from baize_engine import recover, verify
from baize_engine.cli import main


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tiny.write_pair(tmp_path)


def test_recover_and_verify(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    done = baize("recover", "--path_raw", pair[0], "--path_diff", pair[1], "--path_tuned", out, "--device", "cpu")
    assert done.returncode == 0
    assert re.fullmatch(r"warning: .* has no tokenizer, .*\n", done.stderr)  # which the pair lacks
    assert "21 tensors" in done.stdout
    checked = baize("verify", out)
    assert checked.returncode == 0
    assert "as written" in checked.stdout
    (out / "config.json").write_text("{}")
    spoilt = baize("verify", out)
    assert spoilt.returncode == 1
    assert "config.json" in spoilt.stdout


@pytest.mark.parametrize("impatient", [False, True])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_nothing(
    pair: tuple[Path, Path], tmp_path: Path, sent: signal.Signals, impatient: bool
) -> None:
    out = tmp_path / "new" / "tuned"
    paths = ["--path_raw", pair[0], "--path_diff", pair[1], "--path_tuned", out]
    hold, stdin = (slow_baize.BEGUN, 1), subprocess.PIPE if impatient else subprocess.DEVNULL
    child, told = slow_baize.start(0, "recover", "--device", "cpu", *paths, hold=hold, stdin=stdin)
    slow_baize.wait_for(told, *hold)
    assert list(out.glob("*.partial"))
    os.kill(child.pid, sent)
    more = 0
    while child.stdin and (event := os.read(told, 1)):  # until the process ends
        if event == slow_baize.REMOVING:
            os.kill(child.pid, sent)  # while it cleans up, with which it waits for this
            child.stdin.write(".")
            child.stdin.flush()
            more += 1
    assert impatient == (more > 0)
    _, err = child.communicate(timeout=300)
    os.close(told)
    assert child.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not (tmp_path / "new").exists()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.write_pair(tmp_path)[0]


def command(base: Path, diffs: list[Path], outs: list[Path]) -> list[str]:
    pairs = [word for d, o in zip(diffs, outs, strict=True) for word in ("--path_diff", str(d), "--path_tuned", str(o))]
    return ["recover", "--path_raw", str(base), *pairs, "--device", "cpu", "--quiet"]


def test_the_command_takes_pairs(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diffs, outs = write_diffs(tmp_path, tiny.config()), [tmp_path / f"o{n}" for n in range(3)]
    assert main(command(base, diffs, outs)) == 0
    assert capsys.readouterr().out.count("sum of all weights") == 3
    assert all(verify(out).ok for out in outs)
    with pytest.raises(SystemExit) as stop:
        main([*command(base, diffs, outs), "--path_diff", str(diffs[0])])
    assert stop.value.code == 2
    assert "--path_diff is given 4 times, --path_tuned 3 times" in capsys.readouterr().err


def test_the_command_takes_a_tolerance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = base_state()
    pair = write(tmp_path, base, alpaca_diff(base, tuned_state(base, near_mean(1))))
    total = recover(*pair, tmp_path / "out", **SETTINGS).manifest.sum
    line = ["recover", *map(str, pair), str(tmp_path / "two"), "--device", "cpu", "--expect_sum", str(total + 0.4)]
    assert main(line) == 1
    assert "within 0.01" in capsys.readouterr().err
    assert main([*line, "--expect_sum_atol", "0.5"]) == 0
    told = capsys.readouterr().out
    assert "is met within 0.5" in told
    assert "1 token of the diff is not in the base: the mean of the base's rows was added to its row" in told
    assert main([*line[:4], "--device", "cpu"]) == 1
    assert "finished and unchanged" in capsys.readouterr().err
    assert main([*line[:4], "--device", "cpu", "--resume"]) == 0
    assert "an earlier run finished it: every byte is as it was written" in capsys.readouterr().out
