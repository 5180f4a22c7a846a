"""The figures of docs/distributed.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from figures.results import commit, note, report, row

KINDS = ("float16", "int8", "int4")
REMARK = {("int4", 1): " (the memory's speed changed during this row)"}
STATED = {
    "A 65B model in float16 is 131 GB": "65.3e9 parameters of 2 bytes",
    "after 6 seconds on another machine, after 30 on the same one": "limits (SILENCE and SILENCE_HERE of watch.py)",
    "1.26B parameters": "the preset's size",
}


def ranks(kind: str) -> str:
    return f"zen5-2core-ranks-1b-{kind}"


def claims() -> Iterator[str]:
    assert len({commit(ranks(kind)) for kind in KINDS}) == 1
    assert all(report(ranks(kind))["real_time"] for kind in KINDS)
    yield f"real-time priority, commit {commit(ranks('int8'))},"
    for kind in KINDS:
        for batch in (1, 8):
            yield _line(kind, batch)
    exchange = _row("float16", 1, " 2 ranks: exchange")
    yield f"A step has {exchange['exchanges']} exchanges, of {exchange['sent_KB']:.0f} KB in all at batch 1."
    busy = note("distributed", "busy cores")["values"]
    yield (
        f"float16 steps took {busy['least_ms']} to {busy['most_ms']} ms where they otherwise took {busy['otherwise_ms']}."
    )


def _row(kind: str, batch: int, engine: str) -> dict[str, Any]:
    return row(ranks(kind), engine=f"baize {kind}{engine}", batch=batch)


def _line(kind: str, batch: int) -> str:
    speeds = [_row(kind, batch, engine)["tok/s"] for engine in (" 2 ranks", " exact", " plain")]
    exchange = _row(kind, batch, " 2 ranks: exchange")
    cells = [
        f"{kind}, {batch}{REMARK.get((kind, batch), '')}",
        *(f"{speed:.3g}" for speed in speeds),
        f"{exchange['exchange_ms']:.1f} ms, {exchange['of_step']:.0%}".replace("%", " %"),
    ]
    return f"| {' | '.join(cells)} |"
