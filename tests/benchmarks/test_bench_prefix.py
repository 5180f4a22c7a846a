"""bench_prefix: why it skips, and what sharing leaves to compute."""

from __future__ import annotations

import bench_prefix
import pytest
from scripts import report_of


@pytest.mark.usefixtures("forked")
def test_bench_prefix_says_why_it_skips() -> None:
    (row,) = report_of("bench_prefix.py", "--preset", "tiny", "--device", "cpu")["rows"]
    assert row["prompts"].startswith("skipped: ")


def test_tokens_that_sharing_leaves_to_compute() -> None:
    stem = list(range(40))
    many = [[*stem, 100, 101], [*stem, 100, 102], [*stem, 200], stem]
    assert bench_prefix.least(many) == 40 + 2 + 1 + 1  # the last token of a prompt that another begins with too
    assert bench_prefix.counted(many, 16, 64) == 42 + 10 + 9 + 8
    assert bench_prefix.counted(many, 64, 64) == sum(map(len, many))
