"""The base's rows, continued: by its mean row, by zeros, by nothing; the same bits wherever pieces are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from baize_engine.checkpoint.buffers import SLACK, aligned_buffer
from baize_engine.checkpoint.entry import TensorEntry
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.recovery.plan import Fill, Job
from baize_engine.recovery.vocabulary_growth import BaseRows, ColumnMean, mean_row, whole_base

ROWS, COLUMNS, MORE = 11, 6, 3


def stored(path: Path, tensor: torch.Tensor) -> TensorEntry:
    path.write_bytes(tensor.view(torch.uint8).numpy().tobytes())
    return TensorEntry("w", str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), path, 0)


@pytest.fixture(params=["float16", "bfloat16", "float32"])
def tensor(request: pytest.FixtureRequest) -> torch.Tensor:
    drawn = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)) * 3
    return drawn.to(getattr(torch, request.param))


def continued(entry: TensorEntry, fill: Fill, piece: int, subtract: bool = False) -> torch.Tensor:
    """The base's side of a job with MORE rows than the base has, read in pieces."""
    other = TensorEntry("w", "float32", (ROWS + MORE, COLUMNS), entry.path, 0)
    job, parts = Job(entry, other, "float32", fill), []
    with TensorReader(entry) as reader:
        rows = BaseRows([job], reader, aligned_buffer(4 * piece + SLACK), subtract)
        assert rows.grows
        for begin in range(0, other.numel, piece):
            end = min(begin + piece, other.numel)
            assert rows.read(begin, end) == max(0, min(end, entry.numel) - begin) * reader.size
            view, dtype = rows.operand(begin, end, aligned_buffer, job)
            parts.append(torch.frombuffer(bytearray(view), dtype=getattr(torch, dtype)).float())
    return torch.cat(parts).view(ROWS + MORE, COLUMNS)


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().view(torch.int32).flatten().tolist()


def mean_of(tensor: torch.Tensor) -> torch.Tensor:
    """Summed in float64 in row order, and rounded once to float32."""
    total = torch.zeros(COLUMNS, dtype=torch.float64)
    for row in tensor:
        total += row.double()
    return (total / ROWS).float()


@pytest.mark.parametrize("piece", [1, 5, COLUMNS, 7 * COLUMNS + 1, 1000])
def test_the_mean_row_follows_wherever_pieces_are_cut(tensor: torch.Tensor, tmp_path: Path, piece: int) -> None:
    found = continued(stored(tmp_path / "base", tensor), "mean", piece)
    assert torch.equal(found[:ROWS], tensor.float())
    assert bits(found[ROWS:]) == bits(mean_of(tensor).expand(MORE, COLUMNS))


def test_the_mean_row_alone_is_the_same(tensor: torch.Tensor, tmp_path: Path) -> None:
    found = mean_row(stored(tmp_path / "base", tensor))
    assert bits(torch.tensor(found.tolist())) == bits(mean_of(tensor))


@pytest.mark.parametrize(("subtract", "neutral"), [(False, -0.0), (True, 0.0)])
def test_what_changes_no_value_not_even_a_negative_zero(tmp_path: Path, subtract: bool, neutral: float) -> None:
    entry = stored(tmp_path / "base", torch.ones(ROWS, COLUMNS))
    found = continued(entry, "nothing", 10, subtract)[ROWS:]
    assert bits(found) == bits(torch.full((MORE, COLUMNS), neutral))
    for value in (torch.tensor(-0.0), torch.tensor(0.0)):
        assert bits(value - found[0] if subtract else value + found[0]) == bits(value.expand(COLUMNS))
    assert bits(continued(entry, "zero", 10, subtract)[ROWS:]) == bits(torch.zeros(MORE, COLUMNS))


def test_the_longest_base_is_read_for_all_jobs(tmp_path: Path) -> None:
    long = stored(tmp_path / "base", torch.ones(ROWS, COLUMNS))
    short = TensorEntry("w", "float32", (ROWS - 2, COLUMNS), long.path, 0)
    jobs = [Job(base, TensorEntry("w", "float32", base.shape, long.path, 0), "float32") for base in (short, long)]
    assert whole_base(jobs) is long
    assert whole_base(jobs[:1]) is short


def test_a_mean_that_was_not_summed_is_an_error(tmp_path: Path) -> None:
    base = stored(tmp_path / "base", torch.ones(ROWS, COLUMNS))
    other = TensorEntry("w", "float32", (ROWS + 1, COLUMNS), base.path, 0)
    with TensorReader(base) as reader:
        rows = BaseRows([Job(base, other, "float32", "zero")], reader, aligned_buffer(4096), False)
        rows.read(0, other.numel)
        with pytest.raises(ValueError, match="w grows by its mean row, which was not summed"):
            rows.operand(0, other.numel, aligned_buffer, Job(base, other, "float32", "mean"))


def test_column_sums_do_not_depend_on_the_cuts() -> None:
    content = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)).view(torch.uint8).numpy().tobytes()
    means = []
    for cut in (1, 7, 12, 100, len(content)):
        columns = ColumnMean(3, "float32")
        for begin in range(0, len(content), cut):
            columns.add(memoryview(content)[begin : begin + cut])
        means.append(bytes(columns.mean_row(40)))
    assert len(set(means)) == 1
