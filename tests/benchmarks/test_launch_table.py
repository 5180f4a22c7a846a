"""`--tuned` of the benchmarks."""

from __future__ import annotations

import argparse
from pathlib import Path

import launch_table
import launch_tables
import pytest
import torch

from baize_engine.kernels import tuned

CPU = torch.device("cpu")


def option(*words: str) -> str:
    parser = argparse.ArgumentParser()
    launch_table.add_option(parser)
    return parser.parse_args(words).tuned


def test_the_table_in_use(tmp_path: Path) -> None:
    path = launch_tables.write(tmp_path)
    with launch_table.in_use(option("--tuned", str(path)), "cpu") as name:
        assert (name, tuned.table(CPU).gpu) == ("card.json", launch_tables.H100)
        with launch_table.in_use(option("--tuned", "none"), "cpu") as inner:
            assert (inner, tuned.table(CPU)) == ("rules", tuned.NO_TABLE)
    with launch_table.in_use(option(), "cpu") as name:
        assert (name, tuned.table(CPU)) == ("rules", tuned.NO_TABLE)


@pytest.mark.parametrize(("content", "said"), [(None, "No such file"), ("{}", "lacks 'entries'")])
def test_a_file_that_is_no_table_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match=said) as raised, launch_table.in_use(str(path), "cpu"):
        pass
    assert str(path) in str(raised.value)
