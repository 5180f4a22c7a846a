"""The table of implementations: order, forcing, and refusals with reasons."""

from __future__ import annotations

import pytest

from baize_engine.backend import choose
from baize_engine.errors import BackendError


def test_auto_takes_the_first_row_that_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(choose.VARIABLE, raising=False)
    for op in choose.OPS:
        chosen = choose.implementation(op, "cpu")
        able = [row.name for row in choose.table(op) if row.why_not("cpu") is None]
        assert chosen.name == able[0]


def test_forced_by_op_and_in_general(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choose.VARIABLE, "torch,diff_add=cpp-scalar")
    assert choose.implementation("diff_add", "cpu").name == "cpp-scalar"
    assert choose.implementation("linear_add", "cpu").name == "torch"
    monkeypatch.setenv(choose.VARIABLE, "cpp-scalar")
    assert choose.implementation("linear_add", "cpu").name == "cpp-scalar"
    assert choose.implementation("sample", "cpu").name == "cpp-scalar"


@pytest.mark.parametrize(
    ("setting", "op", "message"),
    [
        ("diff_add=triton", "diff_add", "cannot run: needs a GPU$"),
        ("linear_add=abacus", "linear_add", "abacus for linear_add, which has only: triton, cpp-"),
        ("triton", "linear_add", "cannot run: needs a GPU, or TRITON_INTERPRET=1 to debug it on the CPU"),
        ("abacus", "linear_add", "BAIZE_BACKEND=abacus: there is no backend 'abacus', wanted one of triton, cpp-"),
        (
            "cpp",
            "quantize",
            r"there is no backend 'cpp', .*cpp-scalar, torch \(without the variable, baize info shows which",
        ),
        ("diff_add=torch,reference", "sample", "there is no backend 'reference'"),
        ("dance=torch", "linear_add", "unknown op 'dance'"),
    ],
)
def test_a_forced_row_that_cannot_run_raises(
    monkeypatch: pytest.MonkeyPatch, setting: str, op: str, message: str
) -> None:
    monkeypatch.setenv(choose.VARIABLE, setting)
    with pytest.raises(BackendError, match=message):
        choose.implementation(op, "cpu")


@pytest.mark.parametrize("op", ["attention", "sample"])
def test_torch_ops_that_no_graph_can_capture_are_refused_on_a_gpu(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choose.VARIABLE, "torch")
    assert choose.implementation(op, "cpu").name == "torch"
    assert choose.implementation("linear_add", "cuda").name == "torch"
    refused = f"asks for torch for {op} on cuda, which cannot run: it reads values .* a CUDA graph cannot capture"
    with pytest.raises(BackendError, match=refused):
        choose.implementation(op, "cuda")
    assert choose.reference_ops("cuda").rows[op].name == "torch"  # what graphs are held against
