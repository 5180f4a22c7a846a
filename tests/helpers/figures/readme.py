"""Figures of README.md."""

from __future__ import annotations

from collections.abc import Iterator

from figures.performance_engine import ZEN5, decoded, prompt
from figures.results import row
from figures.written import cells, three

STATED = {"A model of 1.26B parameters": "the preset's size"}


def claims() -> Iterator[str]:
    ours, reference = (row(f"{ZEN5}-recover", part="methods", method=method) for method in ("recover", "reference"))
    yield cells(
        "recover, cold files",
        f"{ours['wall_s']:.1f} s, {ours['peak_MiB']:.0f} MiB of memory",
        f"reference script: {three(reference['wall_s'])} s, {reference['peak_MiB'] * 2**20 / 1e9:.1f} GB",
    )
    for words, batch in (("one answer", 1), ("8 answers", 8)):
        yield _speeds(
            f"decode, int8, {words}", *(decoded(ZEN5, "int8", batch, e)["tok/s"] for e in ("baize", "llama.cpp"))
        )
    yield _speeds(
        "read a prompt of 512 tokens, int8", *(prompt(ZEN5, "int8", 512, e)["tok/s"] for e in ("baize", "llama.cpp"))
    )


def _speeds(words: str, ours: float, theirs: float) -> str:
    return cells(words, f"{three(ours)} tokens a second", f"llama.cpp: {three(theirs)}")
