"""Builds of llama.cpp against the processor."""

from __future__ import annotations

import builds

SYSTEM = "CPU : AVX2 = 1 | F16C = 1 | FMA = 1 | AVX512 = 1 | AVX512_VNNI = 0 | "  # as llama.cpp 0.3.36 prints it
FLAGS = {"avx2", "f16c", "fma", "avx512f", "avx512_vnni", "avx512vbmi"}


def test_what_a_build_lacks() -> None:
    assert builds.lacking(SYSTEM, FLAGS) == ["AVX512_VBMI", "AVX512_VNNI"]
    assert builds.lacking(SYSTEM, {"avx2"}) == []


def test_it_is_said_in_words() -> None:
    said = builds.told("0.3", SYSTEM, FLAGS)
    assert said.startswith("0.3, built without AVX512_VBMI, AVX512_VNNI, which this processor has (CPU : AVX2 = 1")
    assert "no instruction set left out" in builds.told("0.3", SYSTEM, {"avx2"})
