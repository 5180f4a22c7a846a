"""`baize info`: the backends of this machine, and what the headers of a model say."""

from __future__ import annotations

import sys
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


@pytest.mark.parametrize("ranks", [[], ["--tensor_parallel", "1"]], ids=["alone", "with ranks"])
def test_info_says_of_a_diff_that_it_is_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, ranks: list[str]
) -> None:
    """And then nothing of how it would be run, which it cannot be."""
    base, diff = tiny.write_pair(tmp_path)
    assert main(["info", str(diff), *ranks]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("  2 layers, hidden 32")
    assert lines[-1].startswith(f"  {diff} is a weight diff, not a model")
    assert main(["info", str(base), *ranks]) == 0
    out = capsys.readouterr().out
    assert "weight diff" not in out
    assert "decode at batch 1" in out


def test_info_says_what_a_rank_holds_and_sends(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from baize_engine.backend import memory
    from baize_engine.cli import info
    from baize_engine.model.config import ModelConfig
    from baize_engine.model.parallel_cost import rank_cost

    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8}
    config = tiny.config(torch_dtype="float16", **sizes)
    folder = tiny.write_model(tmp_path / "model", config, tiny.state(config))
    monkeypatch.setattr(info, "_memory_speed", lambda device: (1e9, "as said"))
    assert main(["info", str(folder), "--tensor_parallel", "2", "--link_speed", "0.5"]) == 0
    told = capsys.readouterr().out.partition("each of 2 ranks")[2].splitlines()
    assert "its link with 0.5 GB/s" in told[0]
    kinds = [line.split()[0] for line in told[1::2]]
    assert kinds == ["float32", "int8", "int4"]
    assert all("6 exchanges and " in line and " bytes sent a step; fits in the " in line for line in told[1::2])
    assert all("tok/s by memory, " in line and " by link, " in line for line in told[2::2])
    assert all("; all 2 on this machine with " in line for line in told[1::2])
    weights = rank_cost(ModelConfig.from_folder(folder), 2, "float32", 1, 128, "float32", "float32").weights
    monkeypatch.setattr(
        memory, "free_bytes", lambda device: 2 * weights
    )  # as the loader: half of it is less than one needs
    assert main(["info", str(folder), "--tensor_parallel", "2"]) == 0
    assert " tokens; all 2 on this machine do not\n" in capsys.readouterr().out
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    assert main(["info", str(folder), "--tensor_parallel", "1"]) == 0
    told_now = capsys.readouterr().out.partition("each of 1 ranks")[2]
    assert told_now.count("does not fit in the 0.0 GiB free here") == 3
    assert "no link" in told_now


def test_info_refuses_ranks_that_do_not_divide(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tiny.config()
    folder = tiny.write_model(tmp_path / "model", config, tiny.state(config))
    assert main(["info", str(folder), "--tensor_parallel", "3"]) == 1
    out, err = capsys.readouterr()
    assert (out, "tensor parallelism sums it in 8 parts" in err or "cannot be split over 3 ranks" in err) == ("", True)
    for wrong, told in (
        (["--tensor_parallel", "2"], "--tensor_parallel needs MODEL"),
        ([str(folder), "--link_speed", "0"], "--link_speed is 0.0, wanted more than 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["info", *wrong])
        assert stop.value.code == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_lines_fit_a_terminal_of_any_width(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info"]) == 0
    plain = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["info"]) == 0
    told = capsys.readouterr().out
    assert max(map(len, plain.splitlines())) > 100
    assert max(map(len, told.splitlines())) <= columns
    assert told.split() == plain.split()


def test_a_path_longer_than_a_terminals_line_stays_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ("long_name" * 10)
    base, _ = tiny.write_pair(tmp_path)
    base.rename(folder)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["info", str(folder)]) == 0
    assert f"{folder}:" in capsys.readouterr().out.splitlines()
