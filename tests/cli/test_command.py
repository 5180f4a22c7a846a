"""The baize command as a user types it: exit codes, and messages without tracebacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from commands import baize, forked_baize

import baize_engine
from baize_engine.cli import main


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tiny.write_pair(tmp_path)


@pytest.mark.parametrize(
    "ways",
    [
        ["-m", "baize_engine"],
        ["-m", "baize_engine.cli"],
        # as scripts have it that pip wrote for any version
        ["-c", "import sys; from baize_engine.cli import main; sys.exit(main())"],
    ],
    ids=["package", "folder", "script"],
)
def test_every_way_to_start_the_command(ways: list[str]) -> None:
    done = subprocess.run([sys.executable, *ways, "--version"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"baize_engine {baize_engine.__version__}\n", "")


def test_a_users_mistake_is_one_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = baize("recover", "--path_raw", tmp_path / "nowhere", "--path_diff", pair[1], "--path_tuned", tmp_path / "t")
    assert done.returncode == 1
    assert done.stderr.startswith("baize: ")
    assert done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr


def test_a_launchers_mistake_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    world = {"WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": 29500}
    for name, value in {"RANK": 5, **world}.items():
        monkeypatch.setenv(name, str(value))
    assert main(["info"]) == 1
    assert capsys.readouterr().err == "baize: RANK is '5', wanted a number from 0 to 1\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["recover"],
        ["recover", "--path_raw", "a"],
        ["recover", "--dtype", "int3"],
        ["dance"],
        ["verify", "a", "--deep"],
    ],
)
def test_wrong_usage_is_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: baize" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["recover", "make_diff", "verify", "quantize", "info", "generate", "merge", "chat", "demo", "lm_eval"]
)
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: baize {command}" in capsys.readouterr().out


def test_generate_refuses_a_base_without_a_tokenizer_by_name(tmp_path: Path) -> None:
    base, _ = tiny.write_pair(tmp_path)
    done = forked_baize("generate", base, "--prompt", "hello")
    assert done.returncode == 1
    assert "tokenizer.model" in done.stderr
    assert "Traceback" not in done.stderr
