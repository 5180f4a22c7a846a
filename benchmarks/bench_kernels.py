"""Every op of the decoder by itself: microseconds, and the share of the device's ceiling.

The ceiling of an op is the larger of its bytes over the bandwidth and its operations over the matrix peak, both measured in
this run: copying and float16 products on a GPU, reading and float32 products on the CPU, where the read speed is measured anew
beside each op; of_specified is GB/s over the card's specified bandwidth (benchmarks/cards.py). Bytes and operations are a
lower bound (baize_engine/model/cost.py). torch does the same work for comparison: on a GPU cuBLAS, scaled_dot_product_attention
on contiguous keys, and float16 for int8 and int4; on the CPU all weights as float32, which it multiplies fastest. Both are
checked against kernels/reference.py before they are timed. On the CPU `of_step` is the share of an op's calls in a decode step
of those ops, with weights of its kind and the first context.

With `--verify` whole steps instead: 1 to 8 rows of one sequence, as drafted tokens are verified, and `of_one`, their time over
that of one row (benchmarks/verify_steps.py). Only on the CPU, where all numbers of rows take turns.

With `--segments` what o and down cost in the segments of a model that ranks share, on one device (benchmarks/segment_costs.py).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import launch_table
import torch
from bandwidth import ReadProbe
from cards import card_of
from common import Spread, device_name, parser
from gpu import ceilings, gpu_spread
from gpu_cases import long, norms
from kernel_cases import Case, Machine, attending, choosing, cpu, gpu, products, work
from models import random_model
from reports import Report
from roofline import matmul_peak
from segment_costs import segment_costs, weights
from shapes import PRESETS, Shape
from torch import Tensor
from verify_steps import verify_steps

from baize_engine.backend import devices
from baize_engine.backend.plan_ops import PlanOp
from baize_engine.kernels.launch import interpreting
from baize_engine.model.config import ModelConfig

KINDS = ("float16", "int8", "int4")
GPU_PROMPT, CPU_PROMPT = 2048, 512  # tokens of a prompt
VERIFIED = range(1, 9)  # rows of a step that verifies
PASSES = 6  # over copies of the data, of a form on the CPU, where the calls are long enough
IN_LAYER = ("qkv_rope_store", "attention", "linear_add o", "gate_up", "linear_add down")
AROUND = ("advance", "embed", "head", "sample greedy")
WEIGHTED = ("qkv_rope_store", "linear_add o", "gate_up", "linear_add down", "head")  # rows for each kind


def groups(m: Machine, config: ModelConfig, options: argparse.Namespace) -> Iterator[tuple[str, Iterator[Case]]]:
    """All cases, in groups with a name each, so that one that cannot be made costs those of its group that come after it."""
    prompt = min(GPU_PROMPT if m.is_gpu else CPU_PROMPT, config.max_position_embeddings)
    for kind in options.kinds:
        yield f"products {kind}", products(m, config, kind, options.rows, 0 if m.is_gpu else prompt)
    for rows in options.rows:
        for context in options.contexts:
            yield f"attention x{rows}, {context}", made(attending, m, config, "attention", rows, 1, context)
        if m.is_gpu:
            yield f"norm x{rows}", made(norms, m, config, rows)
        yield f"around the layers x{rows}", choosing(m, config, rows)
    yield "attention prefill", made(attending, m, config, "attention prefill", 1, prompt, prompt)
    if m.is_gpu:
        yield "prefill", long(m, config, prompt)


def made(make: Callable[..., Case], *arguments: Any) -> Iterator[Case]:
    """One case, made when it is asked for."""
    yield make(*arguments)


def check(name: str, got: Sequence[Tensor], wanted: Sequence[Tensor], bound: float) -> None:
    """SystemExit where a result is off: by its greatest difference over the greatest value, integers by how many differ."""
    for mine, right in zip(got, wanted, strict=False):  # torch has no sums of diff_add
        if right.is_floating_point():
            wide = right.double()
            error = float((mine.double() - wide).abs().max() / wide.abs().max())
        else:
            error = float((mine != right).double().mean())
        if not error <= bound:  # also where it is not a number
            raise SystemExit(f"{name}: its error is {error:.3g}, wanted at most {bound:g}")


def cpu_spread(
    work: Sequence[PlanOp | Callable[[], object]], joined: Callable[..., list[Callable[[], object]]], spent: float
) -> Spread:
    """Seconds of one piece of `work`: PASSES passes in `spent` seconds, each over as many as that allows, made calls by
    `joined`."""

    def seconds(steps: Sequence[Callable[[], object]]) -> float:
        begin = time.perf_counter()
        for step in steps:
            step()
        return time.perf_counter() - begin

    first = joined(work[:1])
    seconds(first)
    many = max(1, min(len(work), int(spent / PASSES / max(seconds(first), 1e-9))))
    steps, found, end = joined(work[:many]), [], time.perf_counter() + spent
    seconds(steps)
    while len(found) < 3 or time.perf_counter() < end:
        found.append(seconds(steps) / many)
    return Spread.of(found)


def measured(m: Machine, case: Case, config: ModelConfig, peak: float, speed: Callable[[], float],
             spread: Callable[[Sequence[PlanOp | Callable[[], object]]], Spread]) -> dict[str, Any]:  # fmt: skip
    wanted = case.wanted()
    name = f"{case.op} {case.kind} x{case.rows}"
    m.calls(case.mine[:1])[0]()
    check(name, case.results, wanted, case.bound)
    check(f"{name} in torch", case.theirs[0](), wanted, case.bound)
    del wanted
    before, mine, after = speed(), spread(case.mine), speed()
    bandwidth, theirs = max(before, after), spread(case.theirs)
    kind = case.kind if case.kind in KINDS else "float16"
    activation = str(m.activation).removeprefix("torch.")
    flops, nbytes = work(config, kind, case.rows, case.context, "prefill" in case.op, activation)[case.op]
    least = max(nbytes / bandwidth / 1e9, flops / peak / 1e12)
    unit, size = ("TFLOP/s", 1e12) if m.is_gpu else ("GFLOP/s", 1e9)
    return {
        "op": case.op, "kind": case.kind, "rows": case.rows, "context": case.context,
        "us": mine.median * 1e6, "p20": mine.p20 * 1e6, "p80": mine.p80 * 1e6,
        "GB/s": nbytes / mine.median / 1e9, unit: flops / mine.median / size, "share": least / mine.median,
        "torch_us": theirs.median * 1e6, "speedup": theirs.median / mine.median,
    }  # fmt: skip


def of_steps(rows: list[dict[str, Any]], layers: int) -> dict[str, dict[str, float]]:
    """{"float16 x1": {op: its share of a decode step}, ...} with the first context, for every kind and number of rows.

    The share of drawing a token is of a step that draws. A step of which an op was not measured is left out.
    """
    found: dict[str, dict[str, float]] = {}
    measured = [row for row in rows if "us" in row]
    for kind, many in ((row["kind"], row["rows"]) for row in measured if row["op"] == "head"):
        us: dict[str, float] = {}
        for row in measured:
            if row["rows"] == many and (row["kind"] == kind or row["op"] not in WEIGHTED):
                us.setdefault(row["op"], row["us"] * (layers if row["op"] in IN_LAYER else 1))
        if not us.keys() >= {*IN_LAYER, *AROUND, "sample top_k top_p"}:
            continue  # one of them failed
        whole, drawing = sum(us[op] for op in (*IN_LAYER, *AROUND)), us["sample top_k top_p"]
        shares = {op: us[op] / whole for op in (*IN_LAYER, *AROUND)}
        found[f"{kind} x{many}"] = {**shares, "sample top_k top_p": drawing / (whole - us["sample greedy"] + drawing)}
    return found


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default=None, help="default: 1b (GPU: 13b)")
    options.add_argument(
        "--rows", type=int, nargs="+", default=None, help="sequences per step (default: 1 8 32, GPU: 1 8 64)"
    )
    options.add_argument("--kinds", choices=KINDS, nargs="+", default=list(KINDS), help="types of the weights")
    options.add_argument("--contexts", type=int, nargs="+", default=None, help="default: 128 512 (GPU: 128 2048)")
    options.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    options.add_argument("--repeats", type=int, default=30, help="GPU: timed replays of each op's graph")
    options.add_argument("--seconds", type=float, default=0.6, help="CPU: time for each form of an op")
    options.add_argument(
        "--verify", type=int, default=None, metavar="CONTEXT", help="CPU: whole steps of rows of one sequence instead"
    )
    options.add_argument("--segments", action="store_true", help="CPU: o and down in segments instead")
    options.add_argument("--quick", action="store_true", help="only the first of --rows, --kinds and --contexts")
    launch_table.add_option(options)
    chosen = options.parse_args()
    device = devices.resolve_device(chosen.device)
    checking = device == "cpu" and interpreting()  # the GPU's kernels, slowly
    if interpreting() and not (checking and chosen.preset == "tiny"):
        raise SystemExit("TRITON_INTERPRET=1 only checks the GPU's kernels: give --device cpu --preset tiny with it")
    on_gpu = device != "cpu" or checking
    shape = PRESETS[chosen.preset or ("13b" if on_gpu else "1b")]
    chosen.rows = chosen.rows or ([1, 8, 64] if on_gpu else [1, 4, 32, 256] if chosen.segments else [1, 8, 32])
    chosen.contexts = chosen.contexts or ([128, 2048] if on_gpu else [128, 512])
    if chosen.repeats < 1 or min(*chosen.rows, *chosen.contexts, 1) < 1 or not chosen.seconds >= 0:
        options.error("--repeats, --rows and --contexts must be at least 1, --seconds at least 0")
    if chosen.verify is not None and (on_gpu or not max(VERIFIED) <= chosen.verify <= shape.positions):
        options.error(f"--verify is for the CPU, with a context of {max(VERIFIED)} to {shape.positions} tokens")
    if chosen.segments and (on_gpu or chosen.verify is not None):
        options.error("--segments is for the CPU, without --verify")
    if chosen.quick:
        chosen.rows, chosen.kinds, chosen.contexts = chosen.rows[:1], chosen.kinds[:1], chosen.contexts[:1]
    config = ModelConfig.from_dict(shape.config(shape.vocabulary, "float16"))
    facts = {"preset": chosen.preset or ("13b" if on_gpu else "1b")}
    with (
        launch_table.in_use(chosen.tuned, device) as facts["tuned"],
        Report("kernels", chosen, device, facts) as report,
    ):
        if chosen.verify is not None:
            verify(report, chosen, shape)
        elif chosen.segments:
            in_segments(report, chosen, config)
        else:
            bench(report, chosen, config, device, on_gpu)
    return report.code


def verify(report: Report, options: argparse.Namespace, shape: Shape) -> None:
    """A row for each number of rows of a step that verifies, of each kind."""
    probe = ReadProbe(torch.get_num_threads())
    report.facts |= {"threads": torch.get_num_threads(), "context": options.verify, "verify_read_GB/s": {}}
    for kind in options.kinds:
        with report.case(op="verify", kind=kind), torch.inference_mode():
            model, before = random_model(shape, kind, "cpu"), probe()
            found = verify_steps(model, options.verify, VERIFIED, options.seconds)
            report.facts["verify_read_GB/s"][kind] = [before, probe()]  # of the memory, before and after
            for count, spread in found.items():
                report.row({
                    "op": "verify", "kind": kind, "rows": count, "context": options.verify, "ms": spread.median * 1e3,
                    "p20": spread.p20 * 1e3, "p80": spread.p80 * 1e3, "of_one": spread.median / found[1].median,
                })  # fmt: skip


def in_segments(report: Report, options: argparse.Namespace, config: ModelConfig) -> None:
    """A row for o and down with each number of rows, of each kind."""
    probe, m = ReadProbe(torch.get_num_threads()), cpu()
    report.facts |= {"threads": torch.get_num_threads(), "read_GB/s": [probe()]}
    torch.manual_seed(0)
    for kind in options.kinds:
        for op in ("o", "down"):
            with report.case(op=op, kind=kind), torch.inference_mode():
                of = weights(m, config, op, kind)
                for rows in options.rows:
                    costs = segment_costs(m, of, kind, rows, options.seconds)
                    report.row({
                        "op": op, "kind": kind, "rows": rows, "us": costs.segments.median * 1e6,
                        "p20": costs.segments.p20 * 1e6, "p80": costs.segments.p80 * 1e6,
                        "whole_us": costs.whole.median * 1e6, "of_whole": costs.segments.median / costs.whole.median,
                    })  # fmt: skip
    report.facts["read_GB/s"].append(probe())  # of the memory, before and after


def bench(report: Report, options: argparse.Namespace, config: ModelConfig, device: str, on_gpu: bool) -> None:
    m, card = gpu(copied=device != "cpu") if on_gpu else cpu(), card_of(device_name(device))
    if on_gpu:
        limits = ceilings(device)
        speed: Callable[[], float] = partial(float, limits["copy_GB/s"])
    else:
        probe = ReadProbe(torch.get_num_threads())
        limits = {"read_GB/s": probe(), "matmul_TFLOP/s": matmul_peak("cpu", torch.float32)}
        speed = probe
        report.facts["threads"] = torch.get_num_threads()
    report.facts["ceilings"] = limits

    def joined(work: Sequence[PlanOp | Callable[[], object]]) -> list[Callable[[], object]]:
        """Ops of the CPU's C++ as one call, as a step has them."""
        return m.ops.compile(work) if not on_gpu and isinstance(work[0], PlanOp) else m.calls(work)

    def spread(work: Sequence[PlanOp | Callable[[], object]]) -> Spread:
        return (
            gpu_spread(m.calls(work), options.repeats) if device != "cpu" else cpu_spread(work, joined, options.seconds)
        )

    print(", ".join(f"{name} {value:.4g}" for name, value in limits.items()), flush=True)
    torch.manual_seed(0)
    with torch.inference_mode(), torch.device(device):
        for name, group in groups(m, config, options):
            with report.case(op=name):
                for case in group:
                    with report.case(op=case.op, kind=case.kind, rows=case.rows, context=case.context):
                        row = measured(m, case, config, limits["matmul_TFLOP/s"], speed, spread)
                        report.row({**row, "of_specified": row["GB/s"] / card.bandwidth} if card else row)
    if not on_gpu:
        report.facts["of_step"] = of_steps(report.rows, config.num_layers)
        for name, shares in report.facts["of_step"].items():
            said = ", ".join(f"{op} {share:.2%}" for op, share in shares.items() if op.startswith("sample"))
            print(f"of a decode step {name}: {said}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
