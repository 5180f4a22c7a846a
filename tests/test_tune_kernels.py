"""The tuner without a GPU: what it tries and keeps, the table it writes, kernels compiled ahead, and a rehearsal."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chains
import in_turn
import precompile
import pytest
import torch
import tune_kernels
import tuner
from assets import REPO
from in_turn import Measured, OnGpu, OnHost
from reports import Report
from triton.runtime.errors import OutOfResources
from tune_kernels import REHEARSAL, Card, File, OutOfTime, Tuning
from tuner import Cell, Found, Move, Op, Plan, Turns

from baize_engine.kernels import reference, settings, tuned
from baize_engine.kernels.settings import TUNED_ROWS

UP = Op("gate_up", 16, (27648, 5120), 1, 0.6)
DOWN = Op("linear_add down", 16, (5120, 13824), 1, 0.3)
ATTENTION = Op("attention", 16, (40, 40, 128), 1, 0.1)
OPS = (DOWN, UP, ATTENTION)
CPU = torch.device("cpu")


def turns(best: float, tried: float, spread: float = 0.0) -> Turns:
    return Turns((best - spread / 2, best, best + spread / 2), (tried,) * 3)


# What is kept


@pytest.mark.parametrize(
    ("best", "tried", "spread", "kept"),
    [
        (100, 98.9, 0.0, True),
        (100, 99.5, 0.0, False),  # half a percent of an op that takes all of the chain
        (100, 99, 2.0, False),  # the unchanged chain's own turns differ by more
        (100, 97, 2.0, True),
        (100, 101, 0.0, False),
        (100, float("nan"), 0.0, False),
    ],
)
def test_what_is_kept_saves_more_than_noise(best: float, tried: float, spread: float, kept: bool) -> None:
    assert turns(best, tried, spread).better(1.0) is kept


def test_the_margin_is_of_the_ops_own_time() -> None:
    assert turns(100, 99.5).better(0.3)
    assert not turns(100, 99.8).better(0.3)


class Card1:
    """A card on which each setting of `faster` saves so many of 100 us, whatever the others; those of `broken` fail."""

    def __init__(self, faster: dict[tuple[str, str, Any], float], broken: tuple[str, Any] = ("", None)) -> None:
        self.faster, self.broken = faster, broken
        self.moves: list[Move] = []
        self.kept: list[Move] = []

    def us(self, plan: Plan) -> float:
        return 100 - sum(
            saved for (op, name, value), saved in self.faster.items() if getattr(plan[op], name, None) == value
        )

    def compare(self, best: Plan, tried: Plan, move: Move) -> Turns | None:
        self.moves.append(move)
        if move.values.get(self.broken[0]) == self.broken[1] and self.broken[0]:
            return None
        return turns(self.us(best), self.us(tried))

    def note(self, move: Move, plan: Plan, turns: Turns, kept: bool) -> None:
        if kept:
            self.kept.append(move)

    def best(self, ops: tuple[Op, ...] = OPS, dependent: bool = True) -> dict[str, Any]:
        return tuner.descend(ops, tuner.rules(ops), dependent, self.compare, self.note)


def test_the_fastest_of_each_aspect_is_found() -> None:
    card = Card1({
        ("gate_up", "block_k", 64): 5, ("gate_up", "block_k", 256): 7, ("linear_add down", "prefetched", 0): 2,
        ("attention", "fetch_first", True): 1,
    })  # fmt: skip
    best = card.best()
    assert (best["gate_up"].block_k, best["gate_up"].block_n) == (256, 16)
    tile = {"block_n": 16, "block_k": 256, "num_warps": 1, "num_stages": 4}
    assert best["gate_up"] == replace(UP.rule, **tile, prefetched=0)  # with the other product
    assert best["linear_add down"] == replace(DOWN.rule, prefetched=0)
    assert best["attention"] == replace(ATTENTION.rule, fetch_first=True)


def test_all_products_try_a_trigger_together_and_one_may_come_back() -> None:
    card = Card1({("gate_up", "trigger", "late"): 8, ("linear_add down", "trigger", "early"): 3})
    best = card.best()
    assert [move.names for move in card.kept] == ["gate_up + linear_add down", "linear_add down"]
    assert (best["gate_up"].trigger, best["linear_add down"].trigger) == ("late", "early")


def test_a_value_that_fails_is_left_out_and_costs_nothing_else() -> None:
    faster = {("gate_up", "block_k", 64): 5.0, ("gate_up", "block_k", 256): 7.0}
    card = Card1(faster, broken=("block_k", 256))
    assert card.best()["gate_up"].block_k == 64
    assert "prefetched" in {move.aspect for move in card.moves}


def test_nothing_is_measured_twice_or_where_it_changes_no_launch() -> None:
    every, plain = Card1({}), Card1({})
    every.best()
    plain.best(dependent=False)
    assert {move.aspect for move in every.moves} == {"tile", "norm", "trigger", "prefetched", "fetch"}
    assert len({(move.ops, tuple(move.values.items())) for move in every.moves}) == len(every.moves)
    assert "trigger" not in {move.aspect for move in plain.moves}
    assert [move.names for move in plain.moves if move.aspect == "prefetched"] == ["gate_up + linear_add down"] * 2
    first = [move.ops[0].name for move in every.moves if move.aspect == "tile"]
    assert first == sorted(first, key=["gate_up", "linear_add down", "attention"].index)


def test_tiles_that_come_to_the_same_launch_are_one() -> None:
    few = replace(UP, rows=8)
    how = few.rule
    assert few.launched(how, True) == few.launched(replace(how, max_block_t=32), True)
    many = replace(UP, rows=64)
    assert many.launched(many.rule, True) != many.launched(replace(many.rule, max_block_t=32), True)
    assert DOWN.launched(DOWN.rule, True) == DOWN.launched(replace(DOWN.rule, fuse_norm=True), True)


def test_what_does_not_stand_a_second_time_is_dropped() -> None:
    card = Card1({("gate_up", "trigger", "late"): 8})
    best = {op.name: op.rule for op in OPS}
    best["gate_up"], best["linear_add down"] = replace(UP.rule, trigger="late"), replace(DOWN.rule, prefetched=2)
    found = tuner.confirm(OPS, tuner.rules(OPS), best, card.compare, card.note)
    assert found["gate_up"] == Found(replace(UP.rule, trigger="late"), 92, 100)
    assert found["linear_add down"].settings == DOWN.rule
    assert found["attention"].settings == ATTENTION.rule
    assert [move.values for move in card.moves] == [{"prefetched": 2}, {"trigger": "late"}, {}]


def test_settings_that_are_slower_together_are_dropped_together() -> None:
    """Each is faster beside the other, as the neighbours of a kernel matter, but the rules are faster than both."""
    best = {**tuner.rules(OPS), **{op.name: replace(op.rule, trigger="late") for op in (UP, DOWN)}}

    def compare(before: Plan, tried: Plan, move: Move) -> Turns:
        return turns(100, 101) if before == tuner.rules(OPS) else turns(120, 101)

    found = tuner.confirm(OPS, tuner.rules(OPS), best, compare, Card1({}).note)
    assert found == {op.name: Found(op.rule) for op in OPS}


def test_the_order_of_cells() -> None:
    every = tuner.cells(["7b", "13b", "30b", "65b"], ["int4", "int8", "float16"], TUNED_ROWS)
    assert len(every) == len(set(every)) == 4 * 3 * 7
    assert [str(cell) for cell in every[:4]] == ["13b float16 x1", "13b float16 x64", "7b float16 x1", "13b int8 x1"]
    assert {cell.preset for cell in every[:42]} == {"7b", "13b"}
    assert tuner.cells(["tiny"], ["int4"], [2, 2]) == [Cell("tiny", "int4", 2)]


# Tables


def lookup(made: list[dict[str, Any]], key: tuple[Any, ...], rows: int, path: Path) -> Any:
    path.write_text(json.dumps({"gpu": "x", "capability": [9, 0], "sms": 1, "entries": made}))
    return tuned.read(path).settings(*key, rows) or tuner.rule(key, rows)


def test_a_neighbours_settings_do_not_reach_where_the_rule_is_better(tmp_path: Path) -> None:
    late = {rows: replace(tuner.rule(UP.key, rows), trigger="late") for rows in TUNED_ROWS}
    known = {UP.key: {4: Found(late[4], 9.0, 10.0), 2: Found(tuner.rule(UP.key, 2)), 1: Found(late[1], 8.0, 10.0)}}
    made = tuner.entries(known)
    assert [(entry["rows"], entry["us"]) for entry in made] == [(4, 9.0), (2, None), (1, 8.0)]
    for rows, wanted in ((1, late[1]), (2, tuner.rule(UP.key, 2)), (3, late[4]), (4, late[4])):
        assert lookup(made, UP.key, rows, tmp_path / "t.json") == wanted
    assert tuner.of_file({"entries": made}) == {UP.key: {4: known[UP.key][4], 1: known[UP.key][1]}}


def test_numbers_of_rows_that_were_not_measured_go_by_the_rules(tmp_path: Path) -> None:
    """Else one row would be launched with the tile of 64 when time was up in between."""
    wide = replace(tuner.rule(UP.key, 64), num_stages=6)
    made = tuner.entries({UP.key: {64: Found(wide, 9.0, 10.0)}})
    for rows in (1, 5, 16, 30, 32):
        assert lookup(made, UP.key, rows, tmp_path / "t.json") == tuner.rule(UP.key, rows)
    assert lookup(made, UP.key, 50, tmp_path / "t.json") == wide


@pytest.mark.parametrize(
    "op", [UP, ATTENTION, Op("sample", 32, (32000,), 1, 1.0), Op("head", 8, (32000, 5120), 1, 1.0)]
)
def test_a_table_says_what_was_found(op: Op, tmp_path: Path) -> None:
    draw = random.Random(op.name)
    for _ in range(20):
        wanted = {}
        for rows in TUNED_ROWS:
            here = replace(op, rows=rows)
            move = draw.choice([Move((here,), "", {}), *tuner.moves((here,))])
            if draw.random() < 0.7:
                wanted[rows] = Found(move.on(tuner.rules((here,)))[op.name], 1.0, 2.0)
        made = tuner.entries({op.key: wanted})
        for rows in TUNED_ROWS:
            right = wanted[rows].settings if rows in wanted else tuner.rule(op.key, rows)
            assert lookup(made, op.key, rows, tmp_path / "t.json") == right


H100 = Card("NVIDIA H100 80GB HBM3", (9, 0), 132)


def late(rows: int) -> Found:
    return Found(replace(tuner.rule(UP.key, rows), trigger="late"), 9.0, 10.0)


def test_a_table_keeps_what_this_run_does_not_measure(tmp_path: Path) -> None:
    path = tmp_path / "h100.json"
    before = File(path, H100)
    before.add((UP,), {"gate_up": late(1)})
    before.add((replace(UP, rows=64),), {"gate_up": late(64)})
    again = File(path, H100)
    assert (before.kept, again.kept) == (0, 2)
    again.add((UP,), {"gate_up": Found(UP.rule)})
    again.add((DOWN,), {"linear_add down": Found(replace(DOWN.rule, prefetched=0), 1.0, 2.0)})
    table, content = tuned.read(path), json.loads(path.read_text())
    assert table.settings(*UP.key, 64) == late(64).settings
    assert table.settings(*UP.key, 1) == UP.rule
    assert table.settings(*DOWN.key, 1).prefetched == 0
    assert (table.gpu, table.capability, table.sms) == (H100.gpu, (9, 0), 132)
    assert {"commit", "versions", "measured", "seconds"} <= content.keys()
    assert [file.name for file in tmp_path.iterdir()] == ["h100.json"]


def test_another_cards_table_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    File(path, H100).add((UP,), {"gate_up": late(1)})
    with pytest.raises(SystemExit, match="is the table of NVIDIA H100 80GB HBM3, 132 multiprocessors, wanted A100's"):
        File(path, Card("A100", (8, 0), 108))
    path.write_text("{}")
    with pytest.raises(SystemExit, match=r"--out: .*card.json: lacks 'entries'"):
        File(path, H100)


# Measuring


def tiny(kind: str = "float16", ops: Any = reference, rows: int = 2, views: tuple[int, ...] = (16, 64)) -> chains.Chain:
    torch.manual_seed(1)
    config = tune_kernels.config_of(Cell("tiny", kind, rows))
    return chains.layers(ops, config, kind, rows, "cpu", views, 0)


def test_a_chain_is_what_a_step_does_in_its_layers() -> None:
    chain = tiny()
    names = [name for name, _ in chain.calls["16"]]
    assert names == ["qkv_rope_store", "attention", "linear_add o", "gate_up", "linear_add down"] * chain.units
    assert sum(op.share for op in chain.ops) == pytest.approx(1)
    assert chain.views(chain.ops[:1]) == ["16"]
    assert chain.views(chain.ops[:2]) == ["16", "64"]
    big = chains.layers(reference, tune_kernels.config_of(Cell("13b", "int4", 1)), "int4", 1, "meta")
    assert {op.name: op.shape for op in big.ops} == {
        "qkv_rope_store": (15360, 5120), "attention": (40, 40, 128), "linear_add o": (5120, 5120),
        "gate_up": (27648, 5120), "linear_add down": (5120, 13824),
    }  # fmt: skip


@pytest.mark.parametrize("kind", tuner.BITS)
def test_results_depend_on_nothing_that_ran_before(kind: str) -> None:
    chain = tiny(kind)
    for view in ("16", "64", "16"):
        found = []
        for _ in range(2):
            chain.spoil(view)
            for _, call in chain.calls[view]:
                call()
            found.append(chain.results(view))
        assert all(bool(torch.isfinite(one).all()) for one in found[0])
        assert all(in_turn.same_bits(one, two) for one, two in zip(*found, strict=True))
        chain.spoil(view)
        assert all(bool(one.isnan().any()) for one in chain.results(view)[1:])


def spoiled(wrong: Callable[[Any], Exception | float | None]) -> Any:
    """The reference ops, whose gate_up does by its settings what `wrong` says: raise, or add to its results."""

    def gate_up(x: Any, norm: Any, eps: float, weights: Any, *, out: torch.Tensor, each_row: bool) -> torch.Tensor:
        how = tuned.product("gate_up", 16, tuple(weights[0].shape), x.shape[0], CPU)
        if isinstance(what := wrong(how), Exception):
            raise what
        reference.gate_up(x, norm, eps, weights, out=out, each_row=each_row)
        return out.add_(what or 0.0)

    return SimpleNamespace(**{**vars(reference), "gate_up": gate_up})


def test_other_bits_are_seen_at_every_context() -> None:
    chain = tiny(ops=spoiled(lambda how: 1e-2 if how.trigger == "late" else None))
    start = tuner.rules(chain.ops)
    measured = Measured(chain, start, OnHost())
    same = {**start, "gate_up": replace(start["gate_up"], prefetched=0)}
    found = measured.compare(start, same, ["16", "64"])
    assert len(found.best) == len(found.tried) == OnHost.turns
    assert found.best_us > 0
    late = {**start, "gate_up": replace(start["gate_up"], trigger="late")}
    for view in ("16", "64"):
        with pytest.raises(in_turn.OtherBits, match=f"other bits than the rules at {view}: "):
            measured.compare(start, late, [view])


class Slow(OnHost):
    """A timer of runs whose settings say how long they take: `late` products a tenth less each."""

    turns, repeats = 2, 2

    def __init__(self) -> None:
        self.us: dict[Any, float] = {}
        self.prepared = 0

    def prepare(self, calls: Any) -> Any:
        self.prepared += 1
        how = tuned.table(CPU)
        late = sum(found[0][1].trigger == "late" for key, found in how.entries.items() if key[0] in settings.PRODUCTS)
        run = super().prepare(calls)
        self.us[run] = (10 - late) * len(calls)
        return run

    def seconds(self, runs: Any, rewind: Any) -> list[float]:
        return [self.us[run] * 1e-4 for run in runs]


def test_what_is_clearly_slower_is_not_measured_long() -> None:
    chain = tiny(views=(16,))
    start = tuner.rules(chain.ops)
    measured = Measured(chain, start, Slow())
    late = {**start, "gate_up": replace(start["gate_up"], trigger="late")}
    found = measured.compare(start, late, ["16"])
    assert found.best == pytest.approx((5000,) * Slow.turns)
    assert found.tried == pytest.approx((4500,) * Slow.turns)
    found = measured.compare(late, start, ["16"])
    assert (found.best, found.tried) == (pytest.approx((4500,)), pytest.approx((5000,)))


class Uneven(Slow):
    """At 64 tokens of context nothing saves anything."""

    def prepare(self, calls: Any) -> Any:
        run = super().prepare(calls)
        if any(call.keywords.get("longest") == 64 for call in calls):
            self.us[run] = 1000.0
        return run


def test_times_at_two_contexts_are_averaged() -> None:
    chain = tiny()
    start = tuner.rules(chain.ops)
    late = {**start, "gate_up": replace(start["gate_up"], trigger="late")}
    found = Measured(chain, start, Uneven()).compare(start, late, ["16", "64"])
    assert (found.best_us, found.tried_us) == pytest.approx((5000, 4750))


def tuning(ops: Any, report: Report, path: Path, left: Callable[[], float] = lambda: 1e9, timer: Any = None) -> Tuning:
    return Tuning(
        ops, "cpu", timer or Slow(), True, precompile.Compilers(90, True, 0), report, File(path, REHEARSAL), left
    )


def test_a_cell_is_measured_and_its_table_written(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    timer = Slow()
    with Report("tune_kernels", argparse.Namespace(json=None)) as report, torch.inference_mode():
        ours = tuning(reference, report, path, timer=timer)
        ours.cell(Cell("tiny", "float16", 1))
        first = timer.prepared
        ours.cell(Cell("tiny", "int4", 1))
    table = tuned.read(path)
    for bits in (16, 4):
        for key in (("gate_up", bits, (352, 64)), ("linear_add", bits, (64, 176)), ("head", bits, (1000, 64))):
            assert table.settings(*key, 1).trigger == "late", key
    assert table.settings("attention", 16, (4, 4, 16), 1) is None
    assert report.code == 0
    confirmed = [row for row in report.rows if row.get("aspect") == "confirmed"]
    assert all(row["us"] < row["before_us"] and row["kept"] for row in confirmed)
    assert len(confirmed) == 2 * (4 + 1 + 1 + 1)  # each product, all of the layers' together, and the head twice
    assert timer.prepared - first < first  # attention and the sampler do not depend on the weights: not a second time
    assert any("attention" in line for line in report.facts["tried"]["tiny float16 x1"])
    assert not any("attention" in line or "sample" in line for line in report.facts["tried"]["tiny int4 x1"])


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        (1e-2, 1, "OtherBits: other bits than the rules at 16"),
        (RuntimeError("PassManager::run failed"), 1, "RuntimeError: PassManager::run failed"),
        (OutOfResources(250000, 232448, "shared memory"), 0, "left out: out of resource: shared memory"),
    ],
)
def test_a_value_that_fails_is_a_row(tmp_path: Path, what: Any, code: int, said: str) -> None:
    path = tmp_path / "t.json"
    ops = spoiled(lambda how: what if how.trigger == "late" else None)
    with Report("tune_kernels", argparse.Namespace(json=None)) as report, torch.inference_mode():
        tuning(ops, report, path).cell(Cell("tiny", "float16", 1))
    table = tuned.read(path)
    assert table.settings("gate_up", 16, (352, 64), 1) is None
    assert table.settings("linear_add", 16, (64, 176), 1).trigger == "late"
    failed = [row for row in report.rows if "problem" in row]
    together = " + ".join(("gate_up", "qkv_rope_store", "linear_add down", "linear_add o"))
    assert {(row["op"], row["aspect"]) for row in failed} == {(together, "trigger"), ("gate_up", "trigger")}
    assert all(row["problem"].startswith(said) for row in failed)
    assert report.code == code


def test_when_time_is_up_finished_chains_are_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with Report("tune_kernels", argparse.Namespace(json=None)) as report, torch.inference_mode():
        ours = tuning(reference, report, path, left=lambda: 0.0 if path.exists() else 1.0)
        with pytest.raises(OutOfTime):
            ours.cell(Cell("tiny", "float16", 1))
    assert {entry["op"] for entry in json.loads(path.read_text())["entries"]} == {
        "qkv_rope_store", "gate_up", "linear_add",
    }  # fmt: skip


def test_a_gpus_runs_are_graphs_that_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda is a fake, whose clock goes on by the passes of a replay."""
    clock = [0.0]
    said: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock[0]

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    class Graph:
        def __init__(self, calls: Any) -> None:
            self.calls = calls

        def replay(self) -> None:
            clock[0] += 0.01 * len(self.calls)
            for call in self.calls:
                call()

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: said.append(f"wait {device}"))
    monkeypatch.setattr(in_turn.graphs, "run_aside", lambda calls, device: said.append(f"aside {len(calls)}"))
    monkeypatch.setattr(in_turn.graphs, "capture", lambda calls, device: Graph(calls))
    chain = tiny(views=(16,))
    start = tuner.rules(chain.ops)
    measured = Measured(chain, start, OnGpu(torch.device("cuda:1")))
    found = measured.compare(start, {**start, "gate_up": replace(start["gate_up"], trigger="late")}, ["16"])
    calls = 5 * chain.units
    assert found.best == pytest.approx((50.0,) * OnGpu.turns)  # 5 calls of 10 us a layer
    assert found.tried == pytest.approx(found.best)
    assert said[0] == f"aside {calls}"  # each call once, though a run has 1 ms of them
    assert set(said[1:]) == {f"aside {calls}", "wait cuda:1"}


# Compiling ahead

ALONE = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
REAL = """
import sys
sys.path[:0] = sys.argv[1:3]
import chains, precompile, tune_kernels, tuner
from baize_engine.kernels import tuned
precompile.stand_in(90, True)
config = tune_kernels.config_of(tuner.Cell("tiny", "int4", 2))
chain = chains.layers(chains.kernels(), config, "int4", 2, "cpu", (16, 64), 0)
late = tuner.Move((chain.ops[3],), "trigger", {"trigger": "late"}).on(tuner.rules(chain.ops))
for view in chain.calls:
    for plan in (tuner.rules(chain.ops), late):
        with tuned.using(tuner.table(chain.ops, plan)):
            for name, call in chain.calls[view]:
                if name in ("gate_up", "attention", "linear_add o"):
                    call()
"""


def test_what_was_compiled_ahead_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls with tensors that have memory, at another number of rows and other contexts, compile nothing more."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    chain = tiny("int4", rows=1)
    ops = [chain.ops[n] for n in (1, 2, 3)]
    late = Move((chain.ops[3],), "trigger", {"trigger": "late"})
    wanted = precompile.jobs("tiny", "int4", ops, [late], tuner.rules(chain.ops), True)
    with precompile.Compilers(90, True, 1) as compilers:
        compilers.ask(wanted)
        assert [compilers.problem(job, 120) for job in wanted] == [None] * 4
        assert compilers.compiled == 4
    made = sorted(tmp_path.rglob("*.cubin"))
    assert len(made) == 5  # attention is two
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(REPO / "benchmarks"), str(REPO)], env={**ALONE, **os.environ}, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(tmp_path.rglob("*.cubin")) == made


def test_a_job_that_fails_says_why_and_the_next_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    chain = tiny(rows=1)
    good = precompile.Job.of("tiny", "float16", chain.ops[2], chain.ops[2].rule, True)
    unknown = replace(good, preset="no such", key=("unknown",))
    with precompile.Compilers(90, True, 1) as compilers:
        assert compilers.problem(unknown, 120) == "KeyError: 'no such'"
        assert compilers.problem(good, 120) is None


def test_a_process_that_ends_costs_its_job_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "ends.py"
    script.write_text(
        "import json, sys\nif 'late' in sys.stdin.readline(): sys.exit(3)\nprint('{\"problem\": null}')\n"
    )
    chain = tiny(rows=1)
    how = chain.ops[3].rule
    jobs = [
        precompile.Job.of("tiny", "float16", chain.ops[3], replace(how, trigger=one), True)
        for one in settings.TRIGGERS[1:]
    ]
    with precompile.Compilers(90, True, 1) as compilers:
        monkeypatch.setattr(compilers, "_command", [sys.executable, str(script)])
        assert compilers.problem(jobs[1], 60) == "the process that compiles ended with 3"
        assert compilers.problem(jobs[0], 60) is None


def test_time_is_not_spent_on_waiting_for_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text("import sys\nsys.stdin.read()\n")
    chain = tiny(rows=1)
    with precompile.Compilers(90, True, 1) as compilers:
        monkeypatch.setattr(compilers, "_command", [sys.executable, str(script)])
        with pytest.raises(TimeoutError):
            compilers.problem(precompile.Job.of("tiny", "float16", chain.ops[3], chain.ops[3].rule, True), 0.2)


# The whole


def call(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPO / "benchmarks" / "tune_kernels.py"), "--device", "cpu", *words]
    environment = {**ALONE, "PYTHONPATH": os.pathsep.join([str(REPO), ALONE.get("PYTHONPATH", "")])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_a_rehearsal(tmp_path: Path) -> None:
    out, kept = tmp_path / "table.json", tmp_path / "report.json"
    done = call("--preset", "tiny", "--batches", "1", "--kinds", "int4", "--out", str(out), "--json", str(kept))
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report == json.loads(kept.read_text())
    assert (report["not_measured"], report["compiled"]) == ([], tune_kernels.REHEARSED_JOBS)
    assert report["rows"][-1]["cell"] == "tiny int4 x1"
    assert report["rows"][-1]["tried"] == len(report["tried"]["tiny int4 x1"]) > 30
    assert tuned.read(out).gpu == REHEARSAL.gpu
    before = sorted(tuned.FOLDER.iterdir())
    again = call("--batches", "1", "--kinds", "int4", "--seconds", "1e-9", "--processes", "0", "--out", str(out))
    assert again.returncode == 0, again.stderr[-2000:]
    assert json.loads(again.stdout.splitlines()[-1])["not_measured"] == ["tiny int4 x1"]
    assert sorted(tuned.FOLDER.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--presets", "13b"), "--presets has 13b, wanted tiny"),
        (("--out", str(tuned.FOLDER / "x.json")), "wanted another folder"),
        (("--seconds", "0"), "--seconds must be greater than 0"),
        (("--batches", "3"), "invalid choice: 3"),
    ],
)
def test_bad_options_are_named(words: tuple[str, ...], said: str) -> None:
    done = call(*words)
    assert done.returncode == 2
    assert said in done.stderr
