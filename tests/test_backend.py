"""The table of implementations: order, forcing, and refusals with reasons."""

from __future__ import annotations

import pytest

from baize_engine import backend
from baize_engine.errors import BackendError


def test_auto_takes_the_first_row_that_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    for op in backend.OPS:
        chosen = backend.choose(op, "cpu")
        able = [row.name for row in backend.table(op) if row.why_not("cpu") is None]
        assert chosen.name == able[0]


def test_forced_by_op_and_in_general(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, "torch,diff_add=cpp-scalar")
    assert backend.choose("diff_add", "cpu").name == "cpp-scalar"
    assert backend.choose("linear_add", "cpu").name == "torch"
    monkeypatch.setenv(backend.VARIABLE, "cpp-scalar")
    assert backend.choose("linear_add", "cpu").name == "cpp-scalar"
    assert backend.choose("sample", "cpu").name == "cpp-scalar"


@pytest.mark.parametrize(
    ("setting", "op", "message"),
    [
        ("diff_add=triton", "diff_add", "cannot run: runs on a GPU"),
        ("linear_add=abacus", "linear_add", "abacus for linear_add, which has only: triton, cpp-"),
        ("abacus", "linear_add", "abacus for linear_add"),
        ("dance=torch", "linear_add", "unknown op 'dance'"),
    ],
)
def test_a_forced_row_that_cannot_run_raises(
    monkeypatch: pytest.MonkeyPatch, setting: str, op: str, message: str
) -> None:
    monkeypatch.setenv(backend.VARIABLE, setting)
    with pytest.raises(BackendError, match=message):
        backend.choose(op, "cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:0", "", "cuda:", "cuda:-1", "cuda:01", "cuda:²", "cuda: 1"])
def test_unknown_devices_are_named(device: str) -> None:
    with pytest.raises(BackendError, match="is not known"):
        backend.resolve_device(device)


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_gpu_count", lambda: 0)
    assert backend.resolve_device("auto") == "cpu"
    with pytest.raises(BackendError, match="no CUDA driver"):
        backend.resolve_device("cuda")
    with pytest.raises(BackendError, match="device cuda:1 cannot be used: no CUDA driver"):
        backend.resolve_device("cuda:1")


def test_a_gpu_is_chosen_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_gpu_count", lambda: 2)
    monkeypatch.setattr(backend, "_no_gpu", lambda: None)
    assert [backend.resolve_device(device) for device in ("auto", "cuda", "cuda:0", "cuda:1")] == [
        "cuda", "cuda", "cuda:0", "cuda:1",
    ]  # fmt: skip
    with pytest.raises(
        BackendError, match=r"device cuda:2 cannot be used: this machine has 2 GPU\(s\), numbered from 0"
    ):
        backend.resolve_device("cuda:2")
