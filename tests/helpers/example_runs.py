"""Examples as a user starts them, but without a GPU, as the results that they are compared with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from assets import REPO

ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}


def command(name: str, *arguments: object) -> list[str]:
    """The command line of the example `name`."""
    return [sys.executable, str(REPO / "examples" / name), *map(str, arguments)]


def run(name: str, *arguments: object, folder: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Runs an example in `folder`, with `typed` as its standard input."""
    environment = {**os.environ, **ON_CPU}
    return subprocess.run(
        command(name, *arguments), cwd=folder, env=environment, input=typed, capture_output=True, text=True, timeout=300
    )


def output(name: str, *arguments: object, folder: Path, typed: str = "") -> list[str]:
    """The lines that an example prints; it must succeed."""
    done = run(name, *arguments, folder=folder, typed=typed)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
