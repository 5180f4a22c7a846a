"""Compares what the ranks bring, and puts the first difference into words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NOTHING = "none"


def difference(hosts: Sequence[str], brought: Sequence[Mapping[str, str]]) -> str | None:
    """The first key, in rank 0's order and then the others', for which a rank differs from rank 0; None if all are equal.

    Both arguments are by rank. Keys are words of the message: "rank 2 (b) has dtype float16; rank 0 (a) has bfloat16".
    """
    for key in dict.fromkeys(key for each in brought for key in each):
        values = [each.get(key, NOTHING) for each in brought]
        others: dict[str, list[int]] = {}
        for rank, value in enumerate(values):
            if value != values[0]:
                others.setdefault(value, []).append(rank)
        if others:
            found = [f"{_ranks(ranks, hosts)} {key} {value}" for value, ranks in others.items()]
            return f"{', '.join(found)}; {_ranks([0], hosts)} {values[0]}"
    return None


def _ranks(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    named = [f"{rank} ({hosts[rank]})" for rank in ranks]
    return f"rank {named[0]} has" if len(ranks) == 1 else f"ranks {', '.join(named)} have"
