"""Baselines of recovery, each its own program: `python recover_methods.py METHOD BASE DIFF OUT`.

Their starts are timed too, so that torch and transformers are imported by the method that needs them.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from baize_engine.backend.adders import Adder, Operand, Stats
from baize_engine.checkpoint.buffers import SLACK, aligned_buffer
from baize_engine.checkpoint.file_io import InputFile
from baize_engine.checkpoint.output_file import OutputFile

BLOCK = 8 << 20
READERS = 3  # 4 and 6 were no faster


class CopyAdder(Adder):
    """Stands where the kernel stands and does nothing; its output holds bytes that no disk can take for empty."""

    name, slack = "copy", SLACK

    def __init__(self) -> None:
        self._filled: dict[int, int] = {}

    def buffer(self, nbytes: int) -> memoryview:
        return aligned_buffer(nbytes)

    def add(self, base: Operand, other: Operand, out: Operand, *, subtract: bool = False) -> Stats:
        view = out.view
        done = self._filled.get(id(view.obj), 0)
        if len(view) > done:  # once for each page that is written, as the kernel touches no others either
            view[done:] = os.urandom(len(view) - done)
            self._filled[id(view.obj)] = len(view)
        return [], 0, 0


def copy(base: Path, diff: Path, out: Path) -> None:
    """The same plan, workers, reads and writes as recover, and nothing else.

    The rows that only the diff has are left out (some 10 KB each): with them a worker would sum the base's columns.
    """
    from baize_engine.checkpoint.index import read_index
    from baize_engine.checkpoint.writer import CheckpointWriter, lay_out
    from baize_engine.recovery.options import RecoveryOptions
    from baize_engine.recovery.plan import plan
    from baize_engine.recovery.stream import Target, stream

    left, right = read_index(base), read_index(diff)
    cut = {name: replace(entry, shape=left.entries[name].shape) for name, entry in right.entries.items()}
    work = plan(left, replace(right, entries=cut), RecoveryOptions(device="cpu"))
    with CheckpointWriter(out, lay_out(job.spec for job in work.jobs)) as writer:
        stream([Target(work, writer)], CopyAdder, hashing=False)
        writer.finish({})


def plain_copy(base: Path, diff: Path, out: Path) -> None:
    """READERS threads read both folders in large ranges, one writes as many bytes as the result has; then fsync."""

    def ranges(folder: Path) -> list[tuple[Path, int, int]]:
        sizes = [(path, path.stat().st_size) for path in sorted(folder.glob("*.bin"))]
        return [(path, at, min(BLOCK, size - at)) for path, size in sizes for at in range(0, size, BLOCK)]

    left, right = ranges(base), ranges(diff)
    share = len(right) / len(left)  # both folders advance together, as in a recovery
    ordered = [(n * share, job) for n, job in enumerate(left)] + list(enumerate(right))
    jobs, lock = iter([job for _, job in sorted(ordered, key=lambda each: each[0])]), threading.Lock()

    def read() -> None:
        buffer = aligned_buffer(BLOCK + SLACK)
        while True:
            with lock:
                path, at, count = next(jobs, (None, 0, 0))
            if path is None:
                return
            files[path].read(at, count, buffer)

    def write(file: OutputFile, nbytes: int) -> None:
        block = aligned_buffer(BLOCK)
        block[:] = os.urandom(BLOCK)
        for begin in range(0, nbytes, BLOCK):
            file.write_at(begin, block[: min(BLOCK, nbytes - begin)])

    out.mkdir()
    nbytes = sum(count for _, _, count in right) // 2
    paths = {path for path, _, _ in left + right}
    with ExitStack() as stack:
        files = {
            path: stack.enter_context(closing(InputFile(path, 0, path.stat().st_size, str(path), True)))
            for path in paths  # once for all readers: looking into the page cache may bring pages there
        }
        file = stack.enter_context(closing(OutputFile(out / "data", nbytes)))
        with ThreadPoolExecutor(READERS + 1) as pool:
            done = [pool.submit(read) for _ in range(READERS)] + [pool.submit(write, file, nbytes)]
        for future in done:
            future.result()
        file.sync()


def reference(base: Path, diff: Path, out: Path) -> None:
    """weight_diff.py's recover: whole models in float32, the mean as the base's new row, add_, save_pretrained."""
    import torch
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    tuned, raw = (
        load(folder, torch_dtype=torch.float32) for folder in (diff, base)
    )  # the script's spelling: 4 and 5 take it
    rows = raw.get_input_embeddings().weight.shape[0]
    extra = tuned.get_input_embeddings().weight.shape[0] - rows
    if extra:
        raw.resize_token_embeddings(rows + extra, mean_resizing=False)
        for weight in (raw.get_input_embeddings().weight.data, raw.get_output_embeddings().weight.data):
            weight[-extra:] = weight[:-extra].mean(dim=0, keepdim=True)
    left, right = tuned.state_dict(), raw.state_dict()
    for name in left:
        left[name].add_(right[name])
    tuned.save_pretrained(out)


METHODS = {"copy": copy, "plain copy": plain_copy, "reference": reference}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("method", choices=METHODS)
    for name in ("base", "diff", "out"):
        options.add_argument(name, type=Path)
    chosen = options.parse_args()
    METHODS[chosen.method](chosen.base, chosen.diff, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
