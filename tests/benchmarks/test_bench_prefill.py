"""The GPU's form of bench_prefill on the CPU, and what it refuses. test_peers.py has the CPU's."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

import bench_prefill
import pytest
import torch
from models import Decoder, random_model
from reports import Report
from shapes import PRESETS

from baize_engine.backend.choose import reference_ops
from baize_engine.model import cost, names
from baize_engine.model.llama import Llama


@pytest.fixture(autouse=True)
def a_card(h100: Callable[[ModuleType], None]) -> None:
    h100(bench_prefill)


def test_bench_prefill() -> None:
    """The rows of a GPU, here of the CPU: ours, the reference ops and transformers."""
    pytest.importorskip("transformers")
    options = argparse.Namespace(preset="tiny", tokens=[20, 200], runs=2, baselines=True)
    with Report("prefill", options) as report:
        bench_prefill.bench(report, options, "float16", "cpu")
    rows, facts = report.rows, report.facts
    by_engine = {row["engine"]: row for row in rows if row["tokens"] == 200}
    assert by_engine.keys() == {"baize float16", "torch float16", "transformers float32"}
    for row in rows:
        assert 0 < row["p20"] <= row["ms"] <= row["p80"]
        assert row["tok/s"] == pytest.approx(row["tokens"] / row["ms"] * 1e3)
        assert row["MFU"] == pytest.approx(row["TFLOP/s"] / facts["matmul_TFLOP/s"])
    config = random_model(PRESETS["tiny"], "float16", "cpu").config
    flops = sum(op.flops for op in cost.prefill(config, 200, "float16", "float32"))
    mine = by_engine["baize float16"]
    assert mine["TFLOP/s"] * mine["ms"] * 1e9 == pytest.approx(flops)


def test_bench_prefill_notices_wrong_logits() -> None:
    model = random_model(PRESETS["tiny"], "float16", "cpu")
    decoder = Decoder(model, 80)
    bench_prefill.check("baize", lambda ids: bench_prefill.ours(decoder, ids), model)
    weights = {**model.weights, names.HEAD: model.weights[names.HEAD].roll(1, 0)}
    wrong = Decoder(Llama(model.config, weights, reference_ops("cpu")), 80)
    with pytest.raises(SystemExit, match="the last logits are"):
        bench_prefill.check("baize", lambda ids: bench_prefill.ours(wrong, ids), model)
    with pytest.raises(SystemExit, match="are nan off"):
        bench_prefill.check("baize", lambda ids: torch.full((1, 1000), float("nan")), model)


def test_the_gpu_form_of_bench_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code on the CPU: a length that fails costs that row; a kind whose logits are wrong costs itself."""
    asked = argparse.Namespace(preset="tiny", tokens=[8, 70], runs=2, baselines=bool(find_spec("transformers")))
    right, reference_model = bench_prefill.ours, bench_prefill.reference_model

    def short(decoder: Decoder, ids: list[int]) -> torch.Tensor:
        if len(ids) == 70:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(decoder, ids)

    def another(model: Llama) -> Llama:
        return reference_model(random_model(PRESETS["tiny"], "float16", "cpu", seed=1))

    monkeypatch.setattr(bench_prefill, "matmul_peak", lambda *_: 0.1)
    monkeypatch.setattr(bench_prefill, "ours", short)
    with Report("prefill", asked) as report:
        with report.case(engine="baize float16"):
            bench_prefill.bench(report, asked, "float16", "cpu")
        monkeypatch.setattr(bench_prefill, "reference_model", another)
        with report.case(engine="baize float16"):
            bench_prefill.bench(report, asked, "float16", "cpu")
    names = ["baize float16", "torch float16", *(["transformers float32"] if asked.baselines else [])]
    failed = "OutOfMemoryError: CUDA out of memory"
    assert [(row["engine"], row["tokens"], row.get("problem", "")) for row in report.rows[:-1]] == [
        *((name, 8, "") for name in names), *((name, 70, failed) for name in names[:2]), *((name, 70, "") for name in names[2:])
    ]  # fmt: skip
    assert report.rows[-1]["problem"].startswith("baize: the last logits are ")
    assert report.code == 1
