"""bench_decode under torchrun: two ranks of a tiny model beside one process."""

from __future__ import annotations

import json
from pathlib import Path

import decode_ranks
import pytest
import rank_processes
import torch
from assets import REPO
from common import REHEARSAL
from rank_exchange import Clocked, Spent

from baize_engine.model import cost, parallel_cost
from baize_engine.model.config import ModelConfig

BENCH = [str(REPO / "benchmarks/bench_decode.py"), "--device", "cpu", "--preset", "tiny"]
SHORT = ["--batches", "1", "3", "--contexts", "20", "--steps", "3", "--rounds", "2"]


def test_ranks_beside_one_process(tmp_path: Path) -> None:
    kinds, folder = ("float16", "int8"), tmp_path / "models"
    command = [*BENCH, *SHORT, "--kinds", *kinds, "--folder", str(folder)]
    run = rank_processes.run(tmp_path, command, 2, **{REHEARSAL: "1", "PYTHONPATH": str(REPO)})
    assert (run.codes, run.err) == ([0, 0], "")
    found = json.loads(run.out.splitlines()[-1])
    assert run.out.count('"bench": "decode"') == 1
    steps = [row for row in found["rows"] if "tok/s" in row]
    assert found["real_time"] is False
    names = {"2 ranks": (2, 1), "exact": (1, 2), "plain": (1, 2)}
    assert [(row["engine"], row["batch"], row["ranks"], row["threads"]) for row in steps] == [
        (f"baize {kind} {name}", batch, *size) for kind in kinds for batch in (1, 3) for name, size in names.items()
    ]
    config = ModelConfig.from_folder(folder / "tiny" / "float16")
    for row in steps:
        assert row["gaps"] == 6  # 3 steps in each of 2 turns
        assert 0 < row["tok/s_p20"] <= row["tok/s"] <= row["tok/s_p80"]
        moved = sum(op.bytes for op in cost.decode_step(config, row["kind"], row["batch"], 21, "float32"))
        assert row["ceiling_tok/s"] == pytest.approx(row["batch"] * row["read_GB/s"] * 1e9 / moved)
        assert row["share"] == pytest.approx(row["tok/s"] / row["ceiling_tok/s"])
    exchanges = [row for row in found["rows"] if "exchanges" in row]
    assert [(row["kind"], row["batch"]) for row in exchanges] == [(kind, batch) for kind in kinds for batch in (1, 3)]
    for row in exchanges:
        costs = parallel_cost.rank_cost(config, 2, row["kind"], row["batch"], 21, "float32", "float16")
        assert (row["exchanges"], row["sent_KB"]) == (costs.exchanges, costs.sent / 1e3)
        assert row["of_step"] == pytest.approx(row["exchange_ms"] / row["step_ms"])
        assert all(row[f"{part}_ms"] > 0 for part in ("message", "sums", "logits", "token", "step", "alone"))


def test_other_ids_than_those_of_one_process_are_noticed() -> None:
    decode_ranks.check_equal("ranks", [[1, 2], [3, 4]], "exact", [[1, 2], [3, 4]])
    with pytest.raises(SystemExit, match=r"step 1: ranks chose \[3, 5\], exact \[3, 4\]"):
        decode_ranks.check_equal("ranks", [[1, 2], [3, 5]], "exact", [[1, 2], [3, 4]])


def test_what_the_ranks_do_not_measure_is_refused_once(tmp_path: Path) -> None:
    run = rank_processes.run(tmp_path, [*BENCH, "--baselines"], 2, PYTHONPATH=str(REPO))
    assert (run.codes, run.out) == ([2, 2], "")
    assert run.err.count("error: under torchrun the ranks of a CPU are timed beside one process, without peers") == 1


class Ranks:
    """They note what they are asked for."""

    rank = 0

    def __init__(self) -> None:
        self.asked: list[object] = []

    def all_gather(self, part: torch.Tensor, out: torch.Tensor) -> None:
        self.asked.append((tuple(part.shape), tuple(out.shape)))

    def broadcast(self, tensor: torch.Tensor) -> None:
        self.asked.append(tuple(tensor.shape))

    def tell(self, message: object) -> None:
        self.asked.append(message)

    def flush(self) -> None:
        self.asked.append("flush")


def test_each_step_has_its_own_seconds_by_what_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("rank_exchange.time.perf_counter", lambda: float(next(clock) ** 2))
    ranks = Ranks()
    clocked = Clocked(ranks, hidden=8)
    clocked.tell("run")
    clocked.flush()
    clocked.all_gather(torch.zeros(1, 8), torch.zeros(2, 1, 8))
    clocked.all_gather(torch.zeros(1, 8), torch.zeros(2, 1, 8))
    clocked.all_gather(torch.zeros(1, 50), torch.zeros(2, 1, 50))
    clocked.broadcast(torch.zeros(1))
    clocked.flush()
    assert clocked.steps == [Spent(), Spent(message=1, sums=5 + 9, logits=13, token=17), Spent(message=21)]
    assert clocked.steps[1].whole == 45
    assert ranks.asked == ["run", "flush", *[((1, 8), (2, 1, 8))] * 2, ((1, 50), (2, 1, 50)), (1,), "flush"]
    assert Spent.usual([Spent(1, 2, 3, 4), Spent(2, 9, 3, 5), Spent(3, 3, 3, 3)]) == Spent(2, 3, 3, 4)
