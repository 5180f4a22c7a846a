"""`baize info`: the backends of this machine, and what the headers of a model say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

from baize_engine.cli import main


def test_info_says_where_a_gpus_launch_settings_come_from(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import launch_tables
    import torch

    from baize_engine.backend import devices
    from baize_engine.kernels import tuned

    facts = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(devices, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    said = []
    for _ in range(2):
        tuned.of_device.cache_clear()
        assert main(["info"]) == 0
        said.append(capsys.readouterr().out)
        launch_tables.write(tmp_path, "h100.json")
    tuned.of_device.cache_clear()
    (tmp_path / "another.json").write_text("{")
    tuned.of_device.cache_clear()
    assert main(["info"]) == 0
    assert "launch settings: none, and no kernel starts: " in (broken := capsys.readouterr().out)
    assert "another.json" in broken
    assert "launch settings: the rules: no card of this generation was tuned" in said[0]
    tuned_on = "tuned on NVIDIA H100 80GB HBM3 (capability 9.0, 132 multiprocessors)"
    assert f"launch settings: h100.json, 1 entries {tuned_on}" in said[1]


def test_info_names_every_op(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base, _ = tiny.write_pair(tmp_path)
    assert main(["info", str(base)]) == 0
    out = capsys.readouterr().out
    assert "diff_add" in out
    assert "cpp-scalar (can run)" in out
    assert "2 layers, hidden 32" in out
