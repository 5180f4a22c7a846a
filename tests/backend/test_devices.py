"""Devices as users name them: those that are not known, that are not there, and a GPU by its number."""

from __future__ import annotations

import pytest

from baize_engine.backend import devices
from baize_engine.errors import BackendError


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:0", "", "cuda:", "cuda:-1", "cuda:01", "cuda:²", "cuda: 1"])
def test_unknown_devices_are_named(device: str) -> None:
    with pytest.raises(BackendError, match="is not known"):
        devices.resolve_device(device)


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_gpu_count", lambda: 0)
    assert devices.resolve_device("auto") == "cpu"
    with pytest.raises(BackendError, match="no CUDA driver"):
        devices.resolve_device("cuda")
    with pytest.raises(BackendError, match="device cuda:1 cannot be used: no CUDA driver"):
        devices.resolve_device("cuda:1")


def test_a_gpu_is_chosen_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_gpu_count", lambda: 2)
    monkeypatch.setattr(devices, "_no_gpu", lambda: None)
    assert [devices.resolve_device(device) for device in ("auto", "cuda", "cuda:0", "cuda:1")] == [
        "cuda", "cuda", "cuda:0", "cuda:1",
    ]  # fmt: skip
    with pytest.raises(
        BackendError, match=r"device cuda:2 cannot be used: this machine has 2 GPU\(s\), numbered from 0"
    ):
        devices.resolve_device("cuda:2")
