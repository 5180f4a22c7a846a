"""Ranks as torchrun starts them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from processes import ends

WORK = """
import os, signal, sys
from baize_engine.distributed.world import World

world = World.of_environment()
world.set_torch_defaults()
os.write(1, f"pid {os.getpid()}\\n".encode())  # in one piece: torchrun makes print write its pieces
if "early" in sys.argv and world.rank == 1:
    raise ValueError("too early")
import torch
from baize_engine.distributed.ranks import Ranks

ranks = Ranks.join(world, "cpu")
part, out = torch.full((3, 4), float(world.rank)), torch.empty(world.size, 3, 4)
ranks.all_gather(part, out)
if "kill" in sys.argv and world.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
while "kill" in sys.argv:
    ranks.all_gather(part, out)
if world.rank > 0:
    assert ranks.receive() == ["word"]
    assert ranks.receive() is None
    ranks.leave()
    sys.exit(ranks.exit_code)
ranks.tell("word")
ranks.flush()
print("done", flush=True)
"""


def torchrun(folder: Path, size: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What it and its ranks print; none of these is left."""
    (folder / "work.py").write_text(WORK)
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        f"{size}",
        folder / "work.py",
        *arguments,
    ]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300)
    assert [line for line in done.stdout.splitlines() if line.startswith("pid") and not ends(int(line[4:]), 0)] == []
    return done


def test_a_run_ends_in_order(tmp_path: Path) -> None:
    done = torchrun(tmp_path, 2)
    assert done.returncode == 0, done.stderr
    assert "done\n" in done.stdout
    assert "baize:" not in done.stderr
    assert "terminate called" not in done.stderr


def test_a_killed_rank_is_named_once(tmp_path: Path) -> None:
    done = torchrun(tmp_path, 3, "kill")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "baize: " in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("baize: rank 1 (")
    assert "terminate called" not in done.stderr


def test_a_rank_that_fails_before_it_joins_ends_all(tmp_path: Path) -> None:
    """It tells itself; torchrun ends the others, which have nothing to add."""
    done = torchrun(tmp_path, 2, "early")
    assert done.returncode != 0
    assert done.stderr.count("ValueError: too early") == 1
    assert "baize:" not in done.stderr
