"""bench_quality on a few texts, and with a model that is wrong."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import bench_quality
import pytest
from matrix_errors import GGUF
from scripts import report_of

from baize_engine.model import names
from baize_engine.model.llama import Llama


@pytest.mark.usefixtures("forked")
def test_bench_quality() -> None:
    found = report_of("bench_quality.py", "--texts", 2, "--length", 40)
    by_kind = {row["weights"]: row for row in found["rows"]}
    ours = {"as published", "int8", "int4"}
    assert by_kind.keys() - {f"{kind} of gguf" for kind in GGUF} == ours
    errors = [by_kind[kind]["squared_error"] for kind in ("as published", "int8", "int4")]
    assert 0 == errors[0] < errors[1] < errors[2] < 0.01
    assert all(by_kind[kind]["of_the_worst"] >= by_kind[kind]["squared_error"] for kind in ours)
    assert 0 <= by_kind["as published"]["KL"] < by_kind["int8"]["KL"] < by_kind["int4"]["KL"]
    for kind in ("int8", "int4"):
        exact, prompt = by_kind[kind]["added_by_exact_activations"], by_kind[kind]["added_in_a_prompt"]
        assert 0 < exact < 1e-6 < prompt < 0.01  # at 16 and at 8 bits an activation


def test_bench_quality_notices_a_wrong_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kernels that say something else than the reference ops on the published weights cost that row; the others stay."""
    load = bench_quality.load

    def wrong(folder: Path, quantize: str | None) -> tuple[Llama, Llama, Llama]:
        exact, fine, int8_activations = load(folder, quantize)
        if quantize is None:
            fine = replace(fine, weights={**fine.weights, names.HEAD: fine.head.roll(1, 0)})
        return exact, fine, int8_activations

    monkeypatch.setattr(bench_quality, "load", wrong)
    monkeypatch.setattr(sys, "argv", ["bench_quality.py", "--texts", "1", "--length", "8"])
    assert bench_quality.main() == 1
    published, *others = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert published["problem"].startswith("demo: the model diverges from itself by")
    assert [(row["weights"], "KL" in row) for row in others[:2]] == [("int8", True), ("int4", True)]
