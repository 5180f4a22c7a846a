"""What all benchmarks share: times, children, caches, the commit."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from common import FIRST, GAP, Spread, cached_bytes, commit, drop_cache, latencies, run_child
from input_files import in_memory


def test_a_childs_peak_is_its_own() -> None:
    ballast = bytearray(300 << 20)  # in this process: a child that was forked from it would begin with as much
    ballast[::4096] = b"x" * len(ballast[::4096])
    small = run_child([sys.executable, "-S", "-c", "pass"])
    large = run_child([sys.executable, "-S", "-c", "b = bytearray(200 << 20); b[::4096] = b'x' * len(b[::4096])"])
    assert small.peak < 100 << 20 < 200 << 20 <= large.peak
    assert len(ballast) == 300 << 20
    failed = run_child([sys.executable, "-c", "import sys; print('out'); sys.exit(3)"])
    assert 0 < failed.first <= failed.wall
    assert (failed.code, failed.output) == (3, "out\n")


def test_latencies() -> None:
    milliseconds = [float(n) for n in range(101)]
    cells = latencies(GAP, [1e-3 * each for each in milliseconds])
    assert cells.pop("gaps") == 101
    assert list(cells.items()) == [
        (name, pytest.approx(value)) for name, value in zip(GAP, (50, 20, 80, 99), strict=False)
    ]
    few = latencies(FIRST, [2e-3, 1e-3])
    assert (few["firsts"], few["ttft_p99"]) == (2, pytest.approx(1.99))


def test_spread() -> None:
    spread = Spread.of([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert (spread.p20, spread.median, spread.p80) == (2.0, 3.5, 5.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_dropped_files_are_not_in_the_page_cache(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(1 << 20))
    with in_memory(file):
        assert cached_bytes(file) == 1 << 20
    refused = ""
    try:
        drop_cache([tmp_path])
    except SystemExit as error:  # a filesystem in memory: then the refusal is what is wanted
        refused = str(error)
    left = cached_bytes(file)
    assert refused.startswith(f"{file}: {left} bytes stay") if left else not refused


def test_a_run_is_not_called_cold_where_pages_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").write_bytes(bytes(1 << 20))
    monkeypatch.setattr("os.posix_fadvise", lambda *arguments: None)
    with pytest.raises(SystemExit, match="stay in the page cache"):
        drop_cache([tmp_path])


def test_the_commit_is_this_checkouts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"[0-9a-f]{12,}(-dirty)?|unknown", commit())
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"  # no git
