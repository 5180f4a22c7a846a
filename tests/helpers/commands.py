"""Commands as tests run them, and files of prompts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import forked

from baize_engine.cli import main


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def generate(folder: Path, *arguments: object) -> int:
    return main(["generate", str(folder), "--device", "cpu", *map(str, arguments)])


MODULE = ["-m", "baize_engine"]


def baize(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *MODULE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **settings)  # type: ignore[call-overload]


def forked_baize(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same without the second that it takes to import torch (fork_server.py)."""
    done = forked.run([*MODULE, *arguments], timeout=300)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
