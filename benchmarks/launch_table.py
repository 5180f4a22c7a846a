"""`--tuned` of the benchmarks: the table from which the GPU's launch settings come (baize_engine/kernels/tuned.py)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from baize_engine.kernels import tuned


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tuned", default="auto", metavar="auto|none|FILE",
        help="launch settings of a GPU's kernels: the nearest card's table as users get it, the rules alone, or FILE's",
    )  # fmt: skip


@contextmanager
def in_use(option: str, device: str) -> Iterator[str]:
    """Launches take their settings from what `--tuned` names; the name of the table. SystemExit where FILE is none."""
    if option == "auto":
        import torch

        yield tuned.of_device(torch.device(device)).name
        return
    try:
        table = tuned.NO_TABLE if option == "none" else tuned.read(Path(option))
    except (OSError, ValueError) as error:
        raise SystemExit(f"--tuned: {error}") from error
    with tuned.using(table):
        yield table.name
