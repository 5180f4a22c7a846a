"""Figures of README.md."""

from __future__ import annotations

from collections.abc import Iterator

from figures.performance_engine import ZEN5, decoded, prompt
from figures.results import row
from figures.written import cells, three

STATED = {"A model of 1.26B parameters": "the preset's size"}


def claims() -> Iterator[str]:
    ours, copy, reference = (
        row(f"{ZEN5}-recover", part="methods", method=method) for method in ("recover", "plain copy", "reference")
    )
    yield f"took {row(f'{ZEN5}-first-result', step='own answer')['since_clone_s']:.0f} s with pip's cache"
    warm = row(f"{ZEN5}-recover-warm", part="methods", method="recover")
    yield f"about {ours['to_plain_copy']:.1f} times as long as copying the files from disk ({warm['to_plain_copy']:.1f} if"
    yield cells(
        "recover, files on disk",
        f"{ours['wall_s']:.1f} s, {ours['peak_MiB'] * 2**20 / 1e6:.0f} MB of memory",
        f"plain copy: {copy['wall_s']:.1f} s; reference script: {three(reference['wall_s'])} s, "
        f"{reference['peak_MiB'] * 2**20 / 1e9:.1f} GB",
    )
    for kind, words, batch, others in (
        ("float16", "one answer", 1, {"llama.cpp": "llama.cpp"}),
        ("int8", "one answer", 1, {"llama.cpp": "llama.cpp"}),
        ("int8", "8 answers", 8, {"ctranslate2": "ctranslate2 int8", "llama.cpp": "llama.cpp"}),
    ):
        theirs = {name: decoded(ZEN5, kind, batch, engine) for name, engine in others.items()}
        yield _speeds(f"decode, {kind}, {words}", decoded(ZEN5, kind, batch), theirs)
    others = {"ctranslate2": "ctranslate2 int8", "llama.cpp": "llama.cpp"}
    theirs = {name: prompt(ZEN5, "int8", 512, engine) for name, engine in others.items()}
    yield _speeds("read a prompt of 512 tokens, int8", prompt(ZEN5, "int8", 512), theirs)


def _speeds(words: str, ours: dict, theirs: dict[str, dict]) -> str:
    """A row of speeds: ours, and others by name."""
    beside = "; ".join(f"{name}: {three(each['tok/s'])}" for name, each in theirs.items())
    return cells(words, f"{three(ours['tok/s'])} tokens a second", beside)
