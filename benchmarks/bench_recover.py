"""baize recover against a plain copy of the same bytes, and against the reference method, on the same files in one run.

The ceiling is the disk: `copy` reads base and diff and writes as many bytes as the result has through the same workers,
buffers and writer, with the kernel and the hash left out; `buffered copy` is a plain program with two readers and a writer.
`reference` is what weight_diff.py does: both models whole in float32 by transformers, add_, save_pretrained. The result of
recover is compared with the reference formula before anything is timed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import Run, Spread, drop_cache, parser, report, run_child
from shapes import PRESETS

from baize_engine.checkpoint.file_io import aligned_buffer

BLOCK = 8 << 20
CHECKED = ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.weight")


def check_result(base: Path, diff: Path, tuned: Path) -> None:
    """Compares some tensors, those that grow among them, with float32(base) + float32(diff) rounded once."""
    import torch

    from baize_engine.checkpoint.index import read_index

    def load(index: Any, name: str) -> torch.Tensor:
        entry = index.entries[name]
        with open(entry.path, "rb") as file:
            file.seek(entry.offset)
            content = bytearray(file.read(entry.nbytes))
        return torch.frombuffer(content, dtype=getattr(torch, entry.dtype)).view(entry.shape)

    indexes = [read_index(folder) for folder in (base, diff, tuned)]
    for name in CHECKED:
        left, right, got = (load(index, name) for index in indexes)
        left = left.float()
        if right.shape[0] > left.shape[0]:
            left = torch.cat([left, left.double().mean(0, keepdim=True).float()])
        wanted = (left + right.float()).to(got.dtype)
        if not torch.equal(got.view(torch.int16), wanted.view(torch.int16)):
            raise SystemExit(f"{tuned}: {name} is not float32(base) + float32(diff) rounded once")


class CopyAdder:
    """Stands where the kernel stands and does nothing; its output holds bytes that no disk can take for empty."""

    name = "copy"

    def __init__(self) -> None:
        self._filled: dict[int, int] = {}

    def buffer(self, nbytes: int) -> memoryview:
        return aligned_buffer(nbytes)

    def add(self, *arguments: Any, **_: Any) -> tuple[list[float], int, int]:
        out = arguments[4]
        done = self._filled.get(id(out.obj), 0)
        if len(out) > done:  # once for each page that is written, as the kernel touches no others either
            out[done:] = os.urandom(len(out) - done)
            self._filled[id(out.obj)] = len(out)
        return [], 0, 0


class NoHash:
    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str:
        return hashlib.sha256().hexdigest()


def copy(base: Path, diff: Path, out: Path) -> None:
    """The same plan, workers, reads and writes as recover, and nothing else."""
    from baize_engine.checkpoint.index import read_index
    from baize_engine.checkpoint.writer import CheckpointWriter, lay_out
    from baize_engine.recovery.plan import plan
    from baize_engine.recovery.stream import stream

    work = plan(read_index(base), read_index(diff), "float16")
    with CheckpointWriter(out, lay_out(job.spec for job in work.jobs)) as writer:
        stream(work, writer, CopyAdder, make_hash=NoHash)
        writer.finish({})


def buffered_copy(base: Path, diff: Path, out: Path) -> None:
    """Two threads read the two folders, a third writes as many bytes as the result has; page cache and fsync."""

    def read(folder: Path) -> None:
        buffer = bytearray(BLOCK)
        for path in sorted(folder.glob("*.bin")):
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def write(nbytes: int) -> None:
        block = os.urandom(BLOCK)
        out.mkdir()
        with open(out / "data", "wb", buffering=0) as file:
            for begin in range(0, nbytes, BLOCK):
                file.write(block[: min(BLOCK, nbytes - begin)])
            os.fsync(file.fileno())

    result = sum(path.stat().st_size for path in diff.glob("*.bin")) // 2
    threads = [
        threading.Thread(target=target, args=(argument,))
        for target, argument in ((read, base), (read, diff), (write, result))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def reference(base: Path, diff: Path, out: Path) -> None:
    """weight_diff.py's recover: whole models in float32, the mean as the base's new row, add_, save_pretrained."""
    import torch
    from transformers import AutoModelForCausalLM

    tuned = AutoModelForCausalLM.from_pretrained(diff, dtype=torch.float32)
    raw = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
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


METHODS = {"copy": copy, "buffered copy": buffered_copy, "reference": reference}


def child(method: str, base: Path, diff: Path, out: Path) -> list[str]:
    if method == "recover":
        paths = ["--path_raw", str(base), "--path_diff", str(diff), "--path_tuned", str(out)]
        return [sys.executable, "-m", "baize_engine", "recover", *paths, "--device", "cpu", "--quiet"]
    return [sys.executable, str(Path(__file__).resolve()), "--method", method, str(base), str(diff), str(out)]


def once(method: str, base: Path, diff: Path, out: Path, cold: bool) -> Run:
    shutil.rmtree(out, ignore_errors=True)
    if cold:
        drop_cache([base, diff])
    run = run_child(child(method, base, diff, out))
    if run.code:
        raise SystemExit(f"{method} failed with {run.code}:\n{run.output}")
    return run


def summary(method: str, runs: list[Run], moved: int, floor: float, slowest: float | None) -> dict[str, Any]:
    wall = Spread.of(run.wall for run in runs)
    cpu = statistics.median(run.cpu for run in runs)
    return {
        "method": method, "runs": len(runs), "wall_s": wall.median, "p20": wall.p20, "p80": wall.p80,
        "GB/s": moved / wall.median / 1e9, "cpu_s": cpu, "cpu_s/GB": cpu / (moved / 1e9),
        "peak_MiB": max(run.peak for run in runs) / 2**20, "to_copy": wall.median / floor,
        "reference_to_it": slowest / wall.median if slowest else "not measured",
    }  # fmt: skip


def bench(options: argparse.Namespace, base: Path, diff: Path, out: Path) -> list[dict[str, Any]]:
    once("recover", base, diff, out, cold=False)  # the warm-up, and what is checked
    check_result(base, diff, out)
    read = sum(path.stat().st_size for folder in (base, diff) for path in folder.glob("*.bin"))
    moved = read + sum(path.stat().st_size for path in out.glob("*.safetensors"))
    runs: dict[str, list[Run]] = {"recover": [], "copy": [], "buffered copy": []}
    for _ in range(options.runs):
        for method, done in runs.items():  # in turn, so that a drifting machine hits all alike
            done.append(once(method, base, diff, out, options.cold))
    if options.reference_runs and find_spec("transformers"):
        runs["reference"] = [once("reference", base, diff, out, options.cold) for _ in range(options.reference_runs)]
    floor = statistics.median(run.wall for run in runs["copy"])
    slowest = statistics.median(run.wall for run in runs["reference"]) if "reference" in runs else None
    return [summary(method, done, moved, floor, slowest) for method, done in runs.items()]


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default="1b")
    options.add_argument("--pair", type=Path, default=None, help="folder with base/ and diff/; made if it has none")
    options.add_argument("--out", type=Path, default=None, help="folder for results, emptied after each run")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--reference_runs", type=int, default=1, help="0 leaves the reference method out")
    options.add_argument("--warm", dest="cold", action="store_false", help="leave the files in the page cache")
    options.add_argument("--method", choices=METHODS, default=None, help=argparse.SUPPRESS)
    options.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.method:  # the child's side
        METHODS[chosen.method](*chosen.paths)
        return 0
    with tempfile.TemporaryDirectory(prefix="baize-bench-") as scratch:
        pair = chosen.pair or Path(scratch) / "pair"
        base, diff = pair / "base", pair / "diff"
        if not base.exists():
            from make_pair import make_pair  # here, because it imports torch and the children, which are timed, do not

            make_pair(chosen.preset, pair)
        rows = bench(chosen, base, diff, (chosen.out or Path(scratch)) / "tuned")
        if chosen.out:
            shutil.rmtree(chosen.out / "tuned")
    report("recover", rows, chosen, preset=chosen.preset, cache="cold" if chosen.cold else "warm")
    return 0


if __name__ == "__main__":
    sys.exit(main())
