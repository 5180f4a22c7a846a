"""The figures of docs/distributed.md; docs/performance.md has the table that they are from."""

from __future__ import annotations

from collections.abc import Iterator

from figures.results import row

STATED = {
    "A 65B model in float16 is 131 GB": "65.3e9 parameters of 2 bytes",
    "after 6 seconds on another machine, after 30 on the same one": "limits (SILENCE and SILENCE_HERE of watch.py)",
    "1.26B parameters": "the preset's size",
}


def claims() -> Iterator[str]:
    ratios = [
        row(f"zen5-2core-ranks-1b-{kind}", engine=f"baize {kind} 2 ranks", batch=batch)["of_exact"]
        for kind in ("float16", "int8", "int4")
        for batch in (1, 8)
    ]
    yield f"decode at {min(ratios):.2f} to {max(ratios):.2f} times the speed of one process in the same form"
