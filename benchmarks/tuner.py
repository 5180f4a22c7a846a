"""The tuner's policy: what it tries in which order, when it keeps a value, and which entries the table needs.

Pure: neither measures nor launches. What it compares are `Turns` that its caller measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product, starmap
from statistics import median
from typing import Any

from baize_engine.kernels import settings
from baize_engine.kernels.settings import ProductSettings
from baize_engine.kernels.tuned import Key, Table

BITS = {"float16": 16, "int8": 8, "int4": 4}
PRESETS = ("13b", "7b", "30b", "65b")  # in the order of their importance, and so the next two
BATCHES = (1, 64, 8, 32, 16, 4, 2)
SECOND = 2  # of PRESETS, all cells of the first two go before those of the others
TOGETHER = ("trigger", "prefetched")  # act on the neighbours too: all products first try a value at once
MARGIN = 0.01  # of the op's own time that a value must save, beside what repeated measurements differ by

Plan = Mapping[str, Any]  # settings of each op of a chain, by the op's name in a step


@dataclass(frozen=True)
class Cell:
    """What is tuned as one: the ops of a step of a model with weights of `kind` at `batch` rows."""

    preset: str
    kind: str
    batch: int

    def __str__(self) -> str:
        return f"{self.preset} {self.kind} x{self.batch}"


def cells(presets: Sequence[str], kinds: Sequence[str], batches: Sequence[int]) -> list[Cell]:
    """All of them, the most important first: 13B and 7B before the larger ones, batch 1 and 64 and float16 before others."""

    def rank(value: Any, order: Sequence[Any]) -> int:
        return order.index(value) if value in order else len(order)

    def order(cell: Cell) -> tuple[int, ...]:
        preset, kind = rank(cell.preset, PRESETS), rank(cell.kind, tuple(BITS))
        batch = rank(cell.batch, BATCHES)
        return preset // SECOND, preset % SECOND + kind + batch, kind, preset, batch

    return sorted(dict.fromkeys(starmap(Cell, product(presets, kinds, batches))), key=order)


@dataclass(frozen=True)
class Op:
    """An op of a chain: `name` in a step ("linear_add o"), and what a table knows it by. `share` of the chain's bytes."""

    name: str
    bits: int
    shape: tuple[int, ...]
    rows: int
    share: float

    @property
    def op(self) -> str:
        return self.name.split()[0]

    @property
    def key(self) -> Key:
        return self.op, self.bits, self.shape

    @property
    def rule(self) -> Any:
        return rule(self.key, self.rows)

    def aspects(self) -> dict[str, list[Mapping[str, Any]]]:
        """The values of each aspect: the rule's own, so that one that was left can be come back to, and the choices."""
        if self.op == "attention":
            choices = settings.attention_choices()
        elif self.op == "sample":
            choices = settings.sample_choices()
        else:
            choices = settings.product_choices(self.op, self.bits, self.rows)
        found: dict[str, list[Mapping[str, Any]]] = {}
        for aspect, values in choices:
            names = dict.fromkeys(name for value in values for name in value)
            own = {name: getattr(self.rule, name) for name in names}
            found[aspect] = [own, *({**own, **value} for value in values)]
        return found

    def launched(self, how: Any, dependent: bool) -> tuple[Any, ...]:
        """What `how` comes to in a launch here; settings that come to the same need no second measurement."""
        if not isinstance(how, ProductSettings):
            return tuple(value for name, value in asdict(how).items() if dependent or name != "trigger")
        fused = self.op in settings.WITH_NORM and how.fuse_norm
        return (
            how.block_n, how.block_k, how.num_warps, how.num_stages, how.block_t(self.rows), fused,
            how.trigger if dependent else "", how.prefetched if dependent or fused else 0,
        )  # fmt: skip


def rule(key: Key, rows: int) -> Any:
    """The settings of an op where no table has any."""
    op, bits, _ = key
    if op == "attention":
        return settings.attention(bits // 8)
    return settings.sample() if op == "sample" else settings.product(op, bits, rows)


@dataclass(frozen=True)
class Turns:
    """Microseconds of a chain under two plans, measured in turn: the best so far, and one that is tried."""

    best: tuple[float, ...]
    tried: tuple[float, ...]

    @property
    def best_us(self) -> float:
        return median(self.best)

    @property
    def tried_us(self) -> float:
        return median(self.tried)

    def better(self, share: float) -> bool:
        """Whether what was tried is faster by more than noise; `share` of the chain's time is that of what was changed.

        Noise is what the unchanged chain's turns differ by, and MARGIN of the time in question.
        """
        noise = max(max(self.best) - min(self.best), MARGIN * share * self.best_us)
        return self.best_us - self.tried_us > noise


@dataclass(frozen=True)
class Move:
    """`ops` of a chain get `values` of an aspect."""

    ops: tuple[Op, ...]
    aspect: str
    values: Mapping[str, Any]

    def on(self, plan: Plan) -> dict[str, Any]:
        return {**plan, **{op.name: replace(plan[op.name], **self.values) for op in self.ops}}

    @property
    def share(self) -> float:
        return sum(op.share for op in self.ops)

    @property
    def names(self) -> str:
        return " + ".join(op.name for op in self.ops)


def rules(ops: Iterable[Op]) -> dict[str, Any]:
    return {op.name: op.rule for op in ops}


def moves(ops: Sequence[Op]) -> Iterator[Move]:
    """All that is tried, aspect by aspect, in each the op with the greatest share first.

    By aspect, not by op: while one op's are measured, what the others' last aspect led to is compiled.
    """
    ordered = sorted(ops, key=lambda op: -op.share)
    values_of = {op: op.aspects() for op in ordered}
    for aspect in dict.fromkeys(aspect for op in ordered for aspect in values_of[op]):
        those = [op for op in ordered if aspect in values_of[op]]
        alike = tuple(op for op in those if op.op in settings.PRODUCTS)
        if aspect in TOGETHER and len(alike) > 1:
            for values in values_of[alike[0]][aspect]:
                yield Move(alike, aspect, values)
        for op in those:
            for values in values_of[op][aspect]:
                yield Move((op,), aspect, values)


Compare = Callable[[Plan, Plan, Move], "Turns | None"]
Note = Callable[[Move, Plan, Turns, bool], None]  # what was tried, what came of it, and whether it is kept


def descend(ops: Sequence[Op], start: Plan, dependent: bool, compare: Compare, note: Note) -> dict[str, Any]:
    """The best plan for `ops`, found from `start` move by move. `compare` gives None for a plan that is to be left out."""
    best, tried = dict(start), set[tuple[Any, ...]]()

    def launched(plan: Plan) -> tuple[Any, ...]:
        return tuple(op.launched(plan[op.name], dependent) for op in ops)

    tried.add(launched(best))
    for move in moves(ops):
        plan = move.on(best)
        if launched(plan) in tried:
            continue
        tried.add(launched(plan))
        turns = compare(best, plan, move)
        if turns is None:
            continue
        kept = turns.better(move.share)
        note(move, plan, turns, kept)
        if kept:
            best = plan
    return best


def changed(before: Any, after: Any) -> dict[str, Any]:
    """The values of `after` that are not those of `before`."""
    return {name: value for name, value in asdict(after).items() if value != getattr(before, name)}


@dataclass(frozen=True)
class Found:
    """The best settings of an op at some number of rows; where they are not the rule, microseconds of its chain with them and
    with the rule."""

    settings: Any
    us: float | None = None
    rules_us: float | None = None


def confirm(ops: Sequence[Op], start: Plan, best: Plan, compare: Compare, note: Note) -> dict[str, Found]:
    """What of `best` is still better when each op's settings are taken away in turn, then all of them; the rule elsewhere."""
    found = {op.name: Found(op.rule) for op in ops}
    plan = dict(best)
    for op in sorted(ops, key=lambda op: op.share):
        if plan[op.name] == op.rule:
            continue
        move = Move((op,), "confirmed", changed(op.rule, plan[op.name]))
        without = {**plan, op.name: op.rule}
        turns = compare(without, plan, move)
        stands = turns is not None and turns.better(op.share)
        if turns is not None:
            note(move, plan, turns, stands)
        if turns is None or not stands:
            plan = without
            continue
        found[op.name] = Found(plan[op.name], turns.tried_us, turns.best_us)
    changed_ops = tuple(op for op in ops if plan[op.name] != op.rule)
    if changed_ops:
        move = Move(changed_ops, "confirmed", {})
        turns = compare(start, plan, move)
        stands = turns is not None and turns.tried_us < turns.best_us
        if turns is not None:
            note(move, plan, turns, stands)
        if not stands:
            return {op.name: Found(op.rule) for op in ops}
    return found


# Tables

Known = dict[Key, dict[int, Found]]


def of_file(content: Mapping[str, Any]) -> Known:
    """What the entries of a table's file say."""
    known: Known = {}
    for entry in content["entries"]:
        made = settings.from_dict(entry["op"], entry["bits"], entry["settings"])
        key = entry["op"], entry["bits"], tuple(entry["shape"])
        known.setdefault(key, {})[entry["rows"]] = Found(made, entry["us"], entry["rules_us"])
    return known


def entries(known: Known) -> list[dict[str, Any]]:
    """An entry for each number of rows at which something is better than the rule."""
    made = []
    for (op, bits, shape), places in sorted(known.items()):
        for rows, found in sorted(places.items()):
            if found.settings != rule((op, bits, shape), rows):
                entry = {"op": op, "bits": bits, "shape": list(shape), "rows": rows, "settings": asdict(found.settings)}
                made.append({**entry, "us": found.us, "rules_us": found.rules_us})
    return made


def table(ops: Iterable[Op], plan: Plan) -> Table:
    """A table with the settings of a plan, for a capture."""
    return Table("tuner", "", (0, 0), 0, {op.key: {op.rows: plan[op.name]} for op in ops})
