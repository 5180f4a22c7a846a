"""The GPU's form of bench_decode on the CPU, and what it refuses. test_peers.py has the CPU's."""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import bench_decode
import pytest
import torch
from arrivals import GREEDY, SAMPLED, CopiedPrompt, Rows
from models import random_model
from reports import Report
from shapes import PRESETS

from baize_engine import SamplingParams
from baize_engine.kernels import reference
from baize_engine.model import cost
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import PromptPiece


@pytest.fixture(autouse=True)
def a_card(h100: Callable[[ModuleType], None]) -> None:
    h100(bench_decode)


def test_bench_decode_notices_wrong_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = PRESETS["tiny"]
    model = random_model(shape, "float32", "cpu")
    bench_decode.check_by_reference(model, shape.vocabulary)
    sample = model.ops.sample
    monkeypatch.setattr(model.ops, "sample", lambda logits, *_, out=None, **__: least(logits, out))
    with pytest.raises(SystemExit, match="step 0: the decoder chose"):
        bench_decode.check_by_reference(model, shape.vocabulary)

    def without_top_k(logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor,
                      *rest: torch.Tensor, **options: Any) -> torch.Tensor:  # fmt: skip
        return sample(logits, 9 * temperature, 0 * top_k, top_p**0, *rest, **options)

    monkeypatch.setattr(model.ops, "sample", without_top_k)
    with pytest.raises(SystemExit, match="the decoder chose"):
        bench_decode.check_by_reference(model, shape.vocabulary)
    monkeypatch.setattr(model.ops, "sample", sample)
    monkeypatch.setattr(CopiedPrompt, "run", shifted(CopiedPrompt.run))
    with pytest.raises(SystemExit, match=r"two rows say .* by itself"):
        bench_decode.check_by_reference(model, shape.vocabulary)
    monkeypatch.undo()
    monkeypatch.setattr(model.ops, "head", head_of(lambda weight: weight.roll(1, 0)))  # every id off by one
    with pytest.raises(SystemExit, match="the reference ops"):
        bench_decode.check_by_reference(model, shape.vocabulary)


def head_of(wrong: Callable[[Any], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The op `head` over another matrix."""
    return lambda x, norm, eps, weight, **how: reference.head(x, norm, eps, wrong(weight), **how)


def least(logits: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    chosen = logits.argmin(-1)
    return chosen if out is None else out.copy_(chosen)


def shifted(run: Callable[..., None]) -> Callable[..., None]:
    """Keys and values that are not the prompt's."""

    def wrong(prompts: CopiedPrompt, pieces: list[PromptPiece]) -> None:
        run(prompts, pieces)
        for piece in pieces:
            prompts.cache.keys[:, piece.sequence.block_table] = 0
            prompts.cache.values[:, piece.sequence.block_table] = 9

    return wrong


def bench_on_cpu(**options: Any) -> Report:
    """The GPU's form of bench_decode, here."""
    asked = {
        "preset": "tiny",
        "batches": [1, 3],
        "contexts": [8, 20],
        "steps": 4,
        "runs": 2,
        "baselines": False,
        **options,
    }
    with Report("decode", argparse.Namespace(**asked)) as report:
        bench_decode.gpu_rows(report, argparse.Namespace(**asked), "cpu")
    return report


def test_the_gpu_form_of_bench_decode(capsys: pytest.CaptureFixture[str]) -> None:
    report = bench_on_cpu(kinds=["float16"])
    assert report.code == 0
    assert {(row["engine"], row["batch"], row["context"]) for row in report.rows} == {
        (name, batch, context)
        for name in ("baize float16", "baize float16 sampled") for batch in (1, 3) for context in (8, 20)
    }  # fmt: skip
    model = random_model(PRESETS["tiny"], "float16", "cpu")
    for row in report.rows:
        assert 0 < row["p20"] <= row["ms/token"] <= row["p80"] <= row["p99"]
        assert 0 < row["ttft_p20"] <= row["ttft_ms"] <= row["ttft_p80"] <= row["ttft_p99"]
        assert (row["firsts"], row["gaps"]) == (2, 4)
        costs = cost.decode_step(model.config, "float16", row["batch"], row["context"] + 2, "float32")
        assert row["GB/s"] * row["ms/token"] * 1e6 == pytest.approx(sum(op.bytes for op in costs))
        assert row["share"] == pytest.approx(row["GB/s"] / 10)
        assert row["of_specified"] == pytest.approx(row["GB/s"] / 3350)
    tok = {
        (row["batch"], row["context"]): f"{row['tok/s']:.4g}" for row in report.rows if row["engine"] == "baize float16"
    }
    head, *lines = bench_decode.grids(report.rows)[2:5]
    assert head.split() == ["8", "20"]
    assert [line.split() for line in lines] == [["1", tok[1, 8], tok[1, 20]], ["3", tok[3, 8], tok[3, 20]]]


def test_a_kind_that_fails_leaves_the_others_and_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three kinds the second gives wrong ids and the third cannot be made; a batch that fails costs itself alone."""
    made: dict[str, weakref.ref] = {}
    step = Rows.__call__

    def make(shape: Any, kind: str, device: str) -> Llama:
        assert all(model() is None for model in made.values()), "a model is still there when the next is made"
        if kind == "int4":
            raise torch.OutOfMemoryError("CUDA out of memory")
        model = random_model(shape, kind, device)
        if kind == "int8":
            model.ops.head = head_of(lambda weight: torch.randn(weight.shape))
        made[kind] = weakref.ref(model)
        return model

    def too_many(rows: Rows, count: int, params: SamplingParams = GREEDY) -> tuple[list[list[int]], list[float]]:
        ids, seconds = step(rows, count, params)
        if len(ids[0]) == 3 and params is SAMPLED:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ids, seconds

    monkeypatch.setattr(bench_decode, "random_model", make)
    monkeypatch.setattr(Rows, "__call__", too_many)
    report = bench_on_cpu(kinds=["float16", "int8", "int4", "bfloat16"], batches=[1, 3, 2], contexts=[8])
    assert report.code == 1
    measured = [(row["engine"], row["batch"]) for row in report.rows if "tok/s" in row]
    assert measured == [
        (f"baize {kind}{how}", batch)
        for kind in ("float16", "bfloat16") for batch in (1, 3, 2) for how in ("", " sampled")[: 1 if batch == 3 else 2]
    ]  # fmt: skip
    problems = [(row["engine"], row.get("batch"), row["problem"]) for row in report.rows if "problem" in row]
    lost = "OutOfMemoryError: CUDA out of memory"
    assert [(name, batch, said) for name, batch, said in problems if name != "baize int8"] == [
        ("baize float16 sampled", 3, lost), ("baize int4", None, lost), ("baize bfloat16 sampled", 3, lost)
    ]  # fmt: skip
    assert ["the decoder chose" in said for name, _, said in problems if name == "baize int8"] == [True]


def test_transformers_beside_the_gpu_form(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")

    def compiled(*_: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(bench_decode, "compiled", compiled)
    report = bench_on_cpu(kinds=["float16"], batches=[2], contexts=[8], baselines=True)
    names = ["baize float16", "baize float16 sampled", "transformers float32", "transformers compiled float32"]
    assert [row["engine"] for row in report.rows] == names
    assert [("tok/s" in row, row.get("gaps")) for row in report.rows] == [(True, 4)] * 3 + [(False, None)]
    assert report.rows[3]["problem"] == "RuntimeError: no compiler here"


def test_bench_decode_says_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(PRESETS["tiny"], "float16", "cpu")
    assert bench_decode.does_not_fit(model, 1, 20, 3) is None
    monkeypatch.setattr(bench_decode, "free_bytes", lambda device: bench_decode.SPARE + 100)
    assert bench_decode.does_not_fit(model, 64, 200, 3) == "does not fit (2 of 2 GB)"
