"""diff_add on tensors in memory: every implementation this machine runs, against torch and the memory's speed.

The ceiling is the time to move the bytes: base and diff read once, out written once, at the copy bandwidth measured in
this run. (Two thirds or more of its bytes are reads, half of a copy's, and reads are faster, so that a share may pass 1.)
Each implementation is compared with the reference definition, bits and sums, before it is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from bandwidth import memory_bandwidth
from common import Spread, measure, parser, report

from baize_engine import _C
from baize_engine.kernels import reference

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
COMBINATIONS = [
    ("float16", "float32", "float16"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("float32", "float32", "float16"),
]


def cpp(variant: str, threads: int, base: torch.Tensor, diff: torch.Tensor, out: torch.Tensor) -> Callable[[], Any]:
    views: list[Any] = [tensor.view(torch.uint8).numpy() for tensor in (base, diff, out)]
    names: list[Any] = [str(tensor.dtype).removeprefix("torch.") for tensor in (base, diff, out)]
    flat = [word for pair in zip(views, names, strict=True) for word in pair]
    return lambda: _C.diff_add(*flat, variant=variant, threads=threads)


def check(name: str, types: tuple[str, ...], out: torch.Tensor, wanted: torch.Tensor, stats: Any, made: Any) -> None:
    """Ends the program where bits differ, or sums and counts, which torch's own expression (`made` a tensor) has not."""
    if not torch.equal(out.view(torch.uint8), wanted.view(torch.uint8)):
        raise SystemExit(f"{name} {types}: its bits are not the reference's")
    if isinstance(made, tuple) and made != (stats.chunk_sums.tolist(), int(stats.overflowed), int(stats.nonfinite)):
        raise SystemExit(f"{name} {types}: its sums or counts are not the reference's")


def in_torch(base: torch.Tensor, diff: torch.Tensor, out: torch.Tensor) -> Callable[[], object]:
    return lambda: out.copy_(base.float() + diff.float())


def row(name: str, types: tuple[str, ...], spread: Spread, moved: int, ceiling: float) -> dict[str, Any]:
    rate = moved / spread.median / 1e9
    return {
        "implementation": name, "types": "+".join(types[:2]) + "->" + types[2], "ms": spread.median * 1e3,
        "ms_p20": spread.p20 * 1e3, "ms_p80": spread.p80 * 1e3, "GB/s": rate, "ceiling_GB/s": ceiling,
        "share": rate / ceiling,
    }  # fmt: skip


def cpu_rows(count: int, runs: int) -> list[dict[str, Any]]:
    rows = []
    most = torch.get_num_threads()
    ceilings = {threads: memory_bandwidth(threads)["copy"] for threads in {1, most}}
    for types in COMBINATIONS:
        base = torch.randn(count).to(TYPES[types[0]])
        diff = (torch.randn(count) * 0.01).to(TYPES[types[1]])
        out = torch.zeros(count, dtype=TYPES[types[2]])
        moved = base.nbytes + diff.nbytes + out.nbytes
        wanted, stats = reference.diff_add(base, diff, out.dtype)
        able = [variant for variant in _C.diff_add_variants() if _C.why_not(variant) is None]
        runners = [(f"cpp-{v}", t, cpp(v, t, base, diff, out)) for v in able for t in sorted(ceilings)]
        for name, threads, run in [*runners, ("torch", most, in_torch(base, diff, out))]:
            out.zero_()
            check(name, types, out, wanted, stats, run())
            rows.append({"threads": threads, **row(name, types, measure(run, runs, 2), moved, ceilings[threads])})
    return rows


def gpu_rows(count: int, runs: int) -> list[dict[str, Any]]:
    from triton.testing import do_bench

    from baize_engine.kernels.diff_add import launch

    rows = []
    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    ceiling = 2 * source.nbytes / (do_bench(lambda: target.copy_(source), return_mode="median") * 1e-3) / 1e9
    for types in COMBINATIONS:
        base = torch.randn(count, device="cuda").to(TYPES[types[0]])
        diff = (torch.randn(count, device="cuda") * 0.01).to(TYPES[types[1]])
        out = torch.zeros(count, dtype=TYPES[types[2]], device="cuda")
        sums = torch.empty(-(-count // reference.CHUNK), dtype=torch.float64, device="cuda")
        counts = torch.empty(2, sums.numel(), dtype=torch.int32, device="cuda")
        moved = base.nbytes + diff.nbytes + out.nbytes
        wanted, stats = reference.diff_add(base, diff, out.dtype)
        for name, run in (
            ("triton", lambda: launch(base, diff, out, sums, counts)),  # noqa: B023  called within this round
            ("torch", in_torch(base, diff, out)),
        ):
            out.zero_()
            run()
            if not torch.equal(out.view(torch.uint8), wanted.view(torch.uint8)) or not torch.equal(
                sums, stats.chunk_sums
            ):
                raise SystemExit(f"{name} {types}: its bits or sums are not the reference's")
            p20, median, p80 = (1e-3 * value for value in do_bench(run, rep=20 * runs, quantiles=[0.2, 0.5, 0.8]))
            rows.append({"threads": 0, **row(name, types, Spread(median, p20, p80), moved, ceiling)})
    return rows


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--elements", type=int, default=1 << 24)
    options.add_argument("--runs", type=int, default=15)
    chosen = options.parse_args()
    on_gpu = torch.cuda.is_available()
    rows = (gpu_rows if on_gpu else cpu_rows)(chosen.elements, chosen.runs)
    report("diff_add", rows, chosen, "cuda" if on_gpu else "cpu")
    return 0


if __name__ == "__main__":
    sys.exit(main())
