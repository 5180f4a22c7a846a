"""How the tuner chooses, and the entries that a table needs: pure, with cards that are made up."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tuner
from table_file import Card, TableFile
from tuner import Cell, Found, Move, Op, Plan, Turns

from baize_engine.kernels import tuned
from baize_engine.kernels.settings import TUNED_ROWS

UP = Op("gate_up", 16, (27648, 5120), 1, 0.6)
DOWN = Op("linear_add down", 16, (5120, 13824), 1, 0.3)
ATTENTION = Op("attention", 16, (40, 40, 128), 1, 0.1)
OPS = (DOWN, UP, ATTENTION)


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
    wide = replace(tuner.rule(UP.key, 64), num_stages=6)
    known = {
        UP.key: {
            4: Found(late[4], 9.0, 10.0), 2: Found(tuner.rule(UP.key, 2)), 1: Found(late[1], 8.0, 10.0),
            64: Found(wide, 7.0, 8.0),
        }
    }  # fmt: skip
    made = tuner.entries(known)
    assert [(entry["rows"], entry["us"]) for entry in made] == [(1, 8.0), (4, 9.0), (64, 7.0)]
    rows_of = {1: late[1], 3: late[4], 4: late[4], 50: wide, 64: wide, 128: wide}
    for rows in (1, 2, 3, 4, 5, 16, 30, 32, 50, 64, 128):
        assert lookup(made, UP.key, rows, tmp_path / "t.json") == rows_of.get(rows, tuner.rule(UP.key, rows))
    assert tuner.of_file({"entries": made}) == {UP.key: {rows: known[UP.key][rows] for rows in (1, 4, 64)}}


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


# On disk

H100 = Card("NVIDIA H100 80GB HBM3", (9, 0), 132)


def late(rows: int) -> Found:
    return Found(replace(tuner.rule(UP.key, rows), trigger="late"), 9.0, 10.0)


def test_a_table_keeps_what_this_run_does_not_measure(tmp_path: Path) -> None:
    path = tmp_path / "h100.json"
    before = TableFile(path, H100)
    before.add((UP,), {"gate_up": late(1)})
    before.add((replace(UP, rows=64),), {"gate_up": late(64)})
    again = TableFile(path, H100)
    assert (before.kept, again.kept) == (0, 2)
    again.add((UP,), {"gate_up": Found(UP.rule)})
    again.add((DOWN,), {"linear_add down": Found(replace(DOWN.rule, prefetched=0), 1.0, 2.0)})
    table, content = tuned.read(path), json.loads(path.read_text())
    assert table.settings(*UP.key, 64) == late(64).settings
    assert table.settings(*UP.key, 1) is None
    assert table.settings(*DOWN.key, 1).prefetched == 0
    assert (table.gpu, table.capability, table.sms) == (H100.gpu, (9, 0), 132)
    assert {"commit", "versions", "measured", "seconds"} <= content.keys()
    assert [file.name for file in tmp_path.iterdir()] == ["h100.json"]


def test_another_cards_table_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    TableFile(path, H100).add((UP,), {"gate_up": late(1)})
    with pytest.raises(SystemExit, match="is the table of NVIDIA H100 80GB HBM3, 132 multiprocessors, wanted A100's"):
        TableFile(path, Card("A100", (8, 0), 108))
    path.write_text("{}")
    with pytest.raises(SystemExit, match=r"--out: .*card.json: lacks 'entries'"):
        TableFile(path, H100)
