"""baize recover against a plain copy of the same bytes and against the reference method, on the same files in one run.

The ceiling is the disk. `plain copy` is a program of its own that reads base and diff and writes as many bytes as the result
has, the fastest of those tried: READERS threads read ranges of both and one writes, past the page cache and in huge pages.
`copy` does the same with recover's own workers, buffers and writer, but without the kernel, the mean row and the hash.
`reference` is what weight_diff.py does: both models whole in float32 by transformers, add_, save_pretrained; its result is
twice as large and not synced, its GB/s count recover's bytes. The result of recover is compared with the reference formula
before it is timed, the reference's own result after its run. A row is one run; "methods" holds the medians of each.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from common import Run, Spread, drop_cache, parser, read_once, run_child
from make_pair import make_pair
from reports import Report, table
from shapes import PRESETS, preset_of

from baize_engine.backend.devices import resolve_device
from baize_engine.checkpoint.config_file import read_config
from baize_engine.errors import BackendError

METHODS = Path(__file__).resolve().with_name("recover_methods.py")
CHECKED = ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.weight")


def check_result(base: Path, diff: Path, tuned: Path, with_mean_row: bool = True) -> None:
    """Compares some tensors, those that grow among them, with float32(base) + float32(diff) rounded once.

    `with_mean_row` is off for the reference: torch's float32 mean depends on its order of summation.
    """
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
        left, rows = left.float(), left.shape[0]
        if right.shape[0] > rows and with_mean_row:
            left = torch.cat([left, left.double().mean(0, keepdim=True).float()])
        elif right.shape[0] > rows:
            right, got = right[:rows], got[:rows]
        wanted = (left + right.float()).to(got.dtype)
        if not torch.equal(got.view(torch.uint8), wanted.view(torch.uint8)):
            raise SystemExit(f"{tuned}: {name} is not float32(base) + float32(diff) rounded once")


class Way(NamedTuple):
    """A method, and the device of its arithmetic."""

    method: str
    device: str = "cpu"


def child(way: Way, base: Path, diff: Path, out: Path) -> list[str]:
    if way.method == "recover":
        paths = ["--path_raw", str(base), "--path_diff", str(diff), "--path_tuned", str(out)]
        return [sys.executable, "-m", "baize_engine", "recover", *paths, "--device", way.device, "--quiet"]
    return [sys.executable, str(METHODS), way.method, str(base), str(diff), str(out)]


def once(way: Way, base: Path, diff: Path, out: Path, cold: bool, look: Callable[[], None] = lambda: None) -> Run:
    """One run in a child, `look` at its result, and the result removed."""
    if cold:
        drop_cache([base, diff])
    else:
        read_once(base)  # no method brings them into the page cache itself
        read_once(diff)
    try:
        run = run_child(child(way, base, diff, out))
        if run.code:
            raise SystemExit(f"{way.method} failed with {run.code}:\n{run.output}")
        look()
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return run


def summaries(runs: Mapping[Way, Sequence[Run]], moved: int) -> list[dict[str, Any]]:
    """A row for each way of those that have run so far."""
    walls = {way: Spread.of(run.wall for run in many) for way, many in runs.items()}
    floor, slowest = (walls.get(Way(method)) for method in ("plain copy", "reference"))
    rows = []
    for way, wall in walls.items():
        cpu = statistics.median(run.cpu for run in runs[way])
        rows.append({
            **way._asdict(), "runs": len(runs[way]), "wall_s": wall.median, "p20": wall.p20, "p80": wall.p80,
            "GB/s": moved / wall.median / 1e9, "cpu_s": cpu, "cpu_s/GB": cpu / (moved / 1e9),
            "peak_MiB": max(run.peak for run in runs[way]) / 2**20,
            "to_plain_copy": wall.median / floor.median if floor else "not measured",
            "reference_to_it": slowest.median / wall.median if slowest else "not measured",
        })  # fmt: skip
    return rows


def bench(options: argparse.Namespace, device: str, base: Path, diff: Path, out: Path, report: Report) -> None:
    """A row for each run, and in the facts "methods", a summary of each. Recover on a GPU has recover on the CPU beside it.

    A recover whose result is wrong, or that fails, is not timed, and nothing is where no result is right.
    """
    runs: dict[Way, list[Run]] = {}
    ways: list[Way] = []
    moved = written = 0

    def look() -> None:
        nonlocal written
        check_result(base, diff, out)
        written = sum(path.stat().st_size for path in out.glob("*.safetensors"))

    def timed(way: Way, number: int, look: Callable[[], None] = lambda: None) -> None:
        with report.case(**way._asdict(), run=number):
            run = once(way, base, diff, out, options.cold, look)
            runs.setdefault(way, []).append(run)
            report.facts["methods"] = summaries(runs, moved)
            report.row({**way._asdict(), "run": number, "wall_s": run.wall, "GB/s": moved / run.wall / 1e9, "cpu_s": run.cpu,
                        "peak_MiB": run.peak / 2**20})  # fmt: skip

    for way in dict.fromkeys((Way("recover", device), Way("recover"))):
        with report.case(**way._asdict()):
            once(way, base, diff, out, False, look)  # the warm-up, and what is checked
            ways.append(way)
    if not ways:
        return
    moved = written + sum(path.stat().st_size for folder in (base, diff) for path in folder.glob("*.bin"))
    ways += [Way("copy"), Way("plain copy")]
    for number in range(options.runs):  # in turn, so that a drifting machine hits all alike; each comes first once
        for way in ways:
            timed(way, number)
        ways = ways[1:] + ways[:1]
    if find_spec("transformers"):
        for number in range(options.reference_runs):
            timed(Way("reference"), number, lambda: check_result(base, diff, out, with_mean_row=False))
    print(*table(report.facts.get("methods", [])), sep="\n")


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default="1b")
    options.add_argument(
        "--pair", type=Path, default=None, help="folder with base/ and diff/, which are made and kept if missing"
    )
    options.add_argument("--out", type=Path, default=None, help="folder on the disk to measure, for temporary results")
    options.add_argument("--device", default="auto", help="device of recover: auto, cpu, cuda or cuda:N")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--reference_runs", type=int, default=1, help="0 leaves the reference method out")
    options.add_argument("--warm", dest="cold", action="store_false", help="measure with the files in the page cache")
    chosen = options.parse_args()
    if chosen.runs < 1 or chosen.reference_runs < 0:
        options.error(f"--runs is {chosen.runs} and --reference_runs {chosen.reference_runs}, wanted 1 and 0 at least")
    try:
        device = resolve_device(chosen.device)
    except BackendError as error:
        options.error(f"--device: {error}")
    with tempfile.TemporaryDirectory(prefix="baize-bench-") as scratch:
        pair = chosen.pair or Path(scratch) / "pair"
        base, diff = pair / "base", pair / "diff"
        if not base.exists():
            try:
                make_pair(chosen.preset, pair)
            except ValueError as error:  # no room
                raise SystemExit(str(error)) from error
        if chosen.out:
            chosen.out.mkdir(parents=True, exist_ok=True)
        facts = {"preset": preset_of(read_config(base)), "cache": "cold" if chosen.cold else "warm"}
        with (
            tempfile.TemporaryDirectory(
                prefix="baize-bench-", dir=chosen.out or scratch
            ) as made,  # never the user's own
            Report("recover", chosen, device, facts) as report,
        ):
            bench(chosen, device, base, diff, Path(made) / "tuned", report)
    return report.code


if __name__ == "__main__":
    sys.exit(main())
