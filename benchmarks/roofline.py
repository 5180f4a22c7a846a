"""The roofline: a device's measured ceilings, how near each op comes to them, and a picture of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gpu
import torch
from bandwidth import memory_bandwidth
from common import REHEARSING, Spread, measure

from baize_engine.model.cost import OpCost

SQUARE = 256 if REHEARSING else 2048  # side of the matrices of a CPU's peak: 2048 keep every core busy
WHOLE = "step"  # the op's name in the row of a whole step
UNITS = {"TFLOP/s": 1e12, "GFLOP/s": 1e9}  # of arithmetic, in a row: a GPU's and a CPU's


def ceilings(device: str, dtype: torch.dtype) -> dict[str, float]:
    """GB/s of reading and copying (bytes read plus written), and TFLOP/s of a product (`matmul_peak`), of this machine now."""
    if device == "cpu":
        speeds = memory_bandwidth(torch.get_num_threads())
        return {
            **{f"{name}_GB/s": speed for name, speed in speeds.items()},
            "matmul_TFLOP/s": matmul_peak(device, dtype),
        }
    source = torch.ones(gpu.COPIED // 4, device=device)
    return {"read_GB/s": gpu.COPIED / gpu.gpu_spread([source.sum], 30).median / 1e9, **gpu.ceilings(device)}


def matmul_peak(device: str, dtype: torch.dtype, runs: int = 5) -> float:
    """TFLOP/s of torch's product of two large square matrices: in `dtype` on a CPU, the median of `runs`; in float16 on a GPU.

    Both half types have one peak there, and one number stands for it in all reports.
    """
    if device != "cpu":
        return gpu.ceilings(device)["matmul_TFLOP/s"]
    left, right = (torch.randn(SQUARE, SQUARE).to(dtype) for _ in range(2))
    return 2e-12 * SQUARE**3 / measure(lambda: left @ right, runs).median


def synchronize(device: str) -> None:
    """Waits for the device's queued work; the CPU has none."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def references(device: str, limits: Mapping[str, float], specified: float | None) -> dict[str, float]:
    """GB/s that a bandwidth is set against, by the name of its share: on a GPU what is specified and what a copy reaches,
    on a CPU what reading reaches. Without those that are not known."""
    if device == "cpu":
        known = {"of_read": limits.get("read_GB/s")}
    else:
        known = {"of_specified": specified, "of_copy": limits.get("copy_GB/s")}
    return {name: speed for name, speed in known.items() if speed}


def row(
    name: str,
    spread: Spread,
    calls: int,
    cost: OpCost | None,
    limits: Mapping[str, float],
    against: Mapping[str, float],
    unit: str,
) -> dict[str, Any]:
    """A row for an op, `spread` being seconds of all its calls in a step.

    `intensity` is FLOP a byte. `ceiling_us`: what moving the op's bytes, or its arithmetic, takes at the least by `limits`,
    and `share` how much of the measured time that is. Then its bandwidth as shares of `against`. `unit` is one of UNITS. An op
    that no cost is known of has its time alone.
    """
    seconds = spread.median
    found: dict[str, Any] = {
        "op": name, "calls": calls, "us": seconds * 1e6, "p20": spread.p20 * 1e6, "p80": spread.p80 * 1e6,
    }  # fmt: skip
    if cost is None:
        return found
    moved = cost.bytes / seconds / 1e9
    found |= {
        "bytes": cost.bytes, "flops": cost.flops, "intensity": cost.flops / cost.bytes, "GB/s": moved,
        unit: cost.flops / seconds / UNITS[unit],
    }  # fmt: skip
    if limits:
        least = max(cost.bytes / bandwidth(limits) / 1e9, cost.flops / limits["matmul_TFLOP/s"] / 1e12)
        found |= {"ceiling_us": least * 1e6, "share": least / seconds}
    return found | {share: moved / speed for share, speed in against.items()}


def bandwidth(limits: Mapping[str, float]) -> float:
    """GB/s of the sloped roof: the faster of reading and copying, so that no op is flattered."""
    return max(limits["read_GB/s"], limits["copy_GB/s"])


def figure_class() -> Any:
    """matplotlib's Figure; SystemExit, before anything is measured, where it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit(
            "--picture needs matplotlib, which is not installed here; save the report with --json results.json, then "
            "`--from_json results.json --picture out.png` draws it on any machine with matplotlib"
        ) from None
    return Figure


def draw(report: Mapping[str, Any], path: Path) -> None:
    """The picture of a report: log-log axes, the roof, and one labelled point for each op that computes."""
    points = [row for row in report["rows"] if row.get("flops") and row["op"] != WHOLE]
    if not points:
        raise SystemExit("the report has no op with flops: is it one of profile_step.py?")
    if not report.get("ceilings"):
        raise SystemExit("the report has no ceilings, which could not be measured: there is no roof to draw")
    unit = next(unit for unit in UNITS if unit in points[0])
    scale = 1e12 / UNITS[unit]
    speed, peak = scale * bandwidth(report["ceilings"]) / 1e3, scale * report["ceilings"]["matmul_TFLOP/s"]
    ridge = peak / speed
    left, right = min(row["intensity"] for row in points) / 3, max(*(row["intensity"] for row in points), ridge) * 4
    figure = figure_class()(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlim=(left, right))
    axes.plot([left, ridge, right], [left * speed, peak, peak], color="black", linewidth=1.5)
    at = ridge * 0.7
    axes.annotate(
        f"{bandwidth(report['ceilings']):.4g} GB/s", (at, at * speed), (-8, 2), textcoords="offset points", ha="right"
    )
    axes.annotate(f"{peak:.3g} {unit}", (right, peak), (-4, 5), textcoords="offset points", ha="right")
    for row in points:
        axes.plot(row["intensity"], row[unit], "o", label=f"{row['op']}: {row['us']:.4g} µs, {row['share']:.0%}")
    _label(axes, points, unit)
    axes.set(xlabel="FLOP / byte", ylabel=unit, title=report["title"])
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(title="time in a step, share of the roof", loc="lower right", fontsize="small")
    figure.savefig(path, dpi=130)


def _label(axes: Any, points: Sequence[Mapping[str, Any]], unit: str) -> None:
    """The ops' names right of their points, under the roof, and pushed apart downwards: at batch 1 intensities are equal."""
    low, high = axes.get_ylim()
    axes.set_ylim(low / 4, high * 1.3)
    line, below = (4 * high / low) ** 0.045, float("inf")  # the height of a text
    for row in sorted(points, key=lambda row: -row[unit]):
        below = min(row[unit], below / line)
        axes.annotate(
            row["op"], (row["intensity"], row[unit]), (row["intensity"] * 1.5, below), va="center",
            fontsize="small", arrowprops={"arrowstyle": "-", "alpha": 0.4, "relpos": (0, 0.5)},
        )  # fmt: skip
