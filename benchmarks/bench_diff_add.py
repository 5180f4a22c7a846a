"""diff_add on tensors in memory: every implementation that this machine runs, against torch and the memory bandwidth.

The ceiling is the time to move the bytes: base and diff read once, out written once, at the copy bandwidth measured in this
run. (At least two thirds of its bytes are reads, against half of a copy's, and reads are faster, so a share may exceed 1.)
of_specified is the share of a GPU's specified bandwidth (benchmarks/cards.py). Before it is timed, each implementation's bits
and sums are compared with the reference definition.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bandwidth import memory_bandwidth
from cards import card_of
from common import Spread, device_name, measure, parser
from reports import Report

from baize_engine import _C
from baize_engine.backend import devices
from baize_engine.kernels import reference

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
COMBINATIONS = [
    ("float16", "float32", "float16"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("float32", "float32", "float16"),
]


def cpp(
    implementation: str, threads: int, base: torch.Tensor, diff: torch.Tensor, out: torch.Tensor
) -> Callable[[], Any]:
    views: list[Any] = [tensor.view(torch.uint8).numpy() for tensor in (base, diff, out)]
    names: list[Any] = [str(tensor.dtype).removeprefix("torch.") for tensor in (base, diff, out)]
    operands = list(zip(views, names, strict=True))
    return lambda: _C.diff_add(*operands, implementation=implementation, threads=threads)


def check(name: str, types: tuple[str, ...], out: torch.Tensor, wanted: torch.Tensor, stats: Any, made: Any) -> None:
    """SystemExit where bits differ, or sums and counts, which torch's own expression (`made` a tensor) has not."""
    if not torch.equal(out.view(torch.uint8), wanted.view(torch.uint8)):
        raise SystemExit(f"{name} {types}: its bits are not the reference's")
    if isinstance(made, tuple) and made != (stats.chunk_sums.tolist(), int(stats.overflowed), int(stats.nonfinite)):
        raise SystemExit(f"{name} {types}: its sums or counts are not the reference's")


def in_torch(base: torch.Tensor, diff: torch.Tensor, out: torch.Tensor) -> Callable[[], object]:
    return lambda: out.copy_(base.float() + diff.float())


def row(name: str, types: tuple[str, ...], spread: Spread, moved: int, ceiling: float) -> dict[str, Any]:
    rate = moved / spread.median / 1e9
    return {
        "implementation": name, "types": said(types), "ms": spread.median * 1e3,
        "ms_p20": spread.p20 * 1e3, "ms_p80": spread.p80 * 1e3, "GB/s": rate, "ceiling_GB/s": ceiling,
        "share": rate / ceiling,
    }  # fmt: skip


def said(types: tuple[str, ...]) -> str:
    return "+".join(types[:2]) + "->" + types[2]


def cpu_rows(report: Report, count: int, runs: int) -> None:
    most = torch.get_num_threads()
    ceilings = {threads: memory_bandwidth(threads)["copy"] for threads in {1, most}}
    able = [row.name for row in _C.implementations() if row.why_not() is None]
    for types in COMBINATIONS:
        base, diff, out = tensors(types, count, "cpu")
        forms = [(f"cpp-{v}", t, cpp(v, t, base, diff, out)) for v in able for t in sorted(ceilings)]
        for name, threads, run in [*forms, ("torch", most, in_torch(base, diff, out))]:
            with report.case(threads=threads, implementation=name, types=said(types)):
                checked(name, types, run, base, diff, out)
                spread = measure(run, runs, 2)
                moved = base.nbytes + diff.nbytes + out.nbytes
                report.row({"threads": threads, **row(name, types, spread, moved, ceilings[threads])})


def gpu_rows(report: Report, count: int, runs: int, device: str) -> None:
    """On a GPU without the host: `runs` replays of a graph, and the copy of the ceiling by the same clock."""
    from gpu import ceilings, gpu_spread

    from baize_engine.kernels.diff_add import launch

    limit, card = ceilings(device)["copy_GB/s"], card_of(device_name(device))
    for types in COMBINATIONS:
        base, diff, out = tensors(types, count, device)
        sums = torch.empty(-(-count // reference.CHUNK), dtype=torch.float64, device=device)
        counts = torch.empty(2, sums.numel(), dtype=torch.int32, device=device)
        call = partial(launch, base, diff, out, sums, counts)

        def triton(call: Any = call, sums: torch.Tensor = sums, counts: torch.Tensor = counts) -> tuple[Any, ...]:
            call()
            return sums.tolist(), *counts.sum(1).tolist()

        in_place = in_torch(base, diff, out)
        for name, once, timed in (("triton", triton, call), ("torch", in_place, in_place)):
            with report.case(threads=0, implementation=name, types=said(types)):
                checked(name, types, once, base, diff, out)
                moved = base.nbytes + diff.nbytes + out.nbytes
                found = {"threads": 0, **row(name, types, gpu_spread([timed], runs), moved, limit)}
                report.row({**found, "of_specified": found["GB/s"] / card.bandwidth} if card else found)


def tensors(types: tuple[str, ...], count: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    base, diff = (torch.randn(count, device=device) * scale for scale in (1.0, 0.01))
    out = torch.zeros(count, dtype=TYPES[types[2]], device=device)
    return base.to(TYPES[types[0]]), diff.to(TYPES[types[1]]), out


def checked(
    name: str, types: tuple[str, ...], run: Callable[[], Any], base: torch.Tensor, diff: torch.Tensor, out: torch.Tensor
) -> None:
    """SystemExit unless `run` gives the reference's bits, and its sums where it has any."""
    wanted, stats = reference.diff_add(base, diff, out.dtype)
    out.zero_()
    check(name, types, out, wanted, stats, run())


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument(
        "--elements", type=int, default=None, help="elements of each tensor (default: 2^24, GPU: 2^26)"
    )
    options.add_argument("--runs", type=int, default=15)
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    chosen = options.parse_args()
    if min(chosen.runs, chosen.elements or 1) < 1:
        options.error("--elements and --runs must be at least 1")
    device = devices.resolve_device(chosen.device)
    with Report("diff_add", chosen, device) as report:
        if device == "cpu":
            cpu_rows(report, chosen.elements or 1 << 24, chosen.runs)
        else:
            with torch.cuda.device(device):
                gpu_rows(report, chosen.elements or 1 << 26, chosen.runs, device)
    return report.code


if __name__ == "__main__":
    sys.exit(main())
