"""`make bench`: runs the standard set on this CPU, one script after another, and prints one table at the end.

Each figure is shown with that of the fastest installed peer of the same precision; `ratio` above 1 means that ours is
faster. Each step's lines are shown when it has ended, and kept. One that fails is reported with the end of its output and does
not stop the others, and what it measured before counts; the exit code tells.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from common import commit, device_name, versions
from gpu_plan import Step, bench
from gpu_run import run
from reports import table
from shapes import PRESETS

KINDS = ("float16", "int8", "int4")
LIMIT = 1800  # seconds of a step; all of them take under 10 minutes with the 125m preset on two cores


def steps(preset: str, folder: Path, ik_llama: Path | None = None) -> list[Step]:
    tokens = min(512, PRESETS[preset].positions - 1)
    model, files = ["--preset", preset, "--kinds", *KINDS], ["--peers", "--folder", str(folder)]
    cpu, binaries = ["--device", "cpu"], ["--ik_llama", str(ik_llama.absolute())] if ik_llama else []
    return [
        bench("diff_add", LIMIT, "bench_diff_add.py"),
        bench("recover", LIMIT, "bench_recover.py", *cpu, "--preset", preset),
        bench("decode", LIMIT, "bench_decode.py", *cpu, *model, *files, *binaries),
        bench(
            "prefill",
            LIMIT,
            "bench_prefill.py",
            *cpu,
            *model,
            "--tokens",
            str(tokens),
            "--runs",
            "3",
            *files,
            *binaries,
        ),
        bench("start", LIMIT, "bench_start.py", *model, "--runs", "3", *files),
        bench("kernels", LIMIT, "bench_kernels.py", *cpu, *model, "--rows", "1", "--contexts", "128"),
        bench(
            "speculate",
            LIMIT,
            f"bench_speculate.py --models {preset} {preset}-random --prompts 2",
            *cpu,
            "--kinds",
            *KINDS,
            "--folder",
            str(folder),
        ),
    ]


def line(what: str, figure: float, unit: str, ceiling: Any = "", share: Any = "", peer: str = "", its: Any = "",
         ratio: Any = "") -> dict[str, Any]:  # fmt: skip
    return {
        "what": what, "figure": figure, "unit": unit, "ceiling": ceiling, "share": share, "peer": peer, "its": its,
        "ratio": ratio,
    }  # fmt: skip


def diff_add_lines(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    rows = [row for row in report["rows"] if row["types"] == "float16+float32->float16" and "GB/s" in row]
    ours = [row for row in rows if row["implementation"] != "torch"]
    best = max(ours, key=lambda row: row["GB/s"], default=None)
    if best is not None:
        peer = [("torch", row["GB/s"], best["GB/s"] / row["GB/s"]) for row in rows if row["implementation"] == "torch"]
        yield line(f"diff_add f16 + f32 -> f16, {best['threads']} threads", best["GB/s"], "GB/s", best["ceiling_GB/s"],
                   best["share"], *(peer[0] if peer else ()))  # fmt: skip


def recover_lines(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    by_method = {row["method"]: row["wall_s"] for row in report.get("methods", [])}
    if not by_method.keys() >= {"recover", "copy"}:
        return  # one of them failed
    ours, copy, reference = by_method["recover"], by_method["copy"], by_method.get("reference")
    peer = () if reference is None else ("transformers", reference, reference / ours)
    yield line(f"recover, {report['cache']} cache", ours, "s", copy, copy / ours, *peer)


def decode_lines(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    def said(row: dict[str, Any]) -> str:
        return f"decode {row['engine'].removeprefix('baize ')}, batch {row['batch']}, context {row['context']}"

    yield from _beside_peers(report["rows"], said, ("batch", "context"), "read_GB/s", "GB/s")


def prefill_lines(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    def said(row: dict[str, Any]) -> str:
        return f"prefill {row['engine'].removeprefix('baize ')}, {row['tokens']} tokens"

    yield from _beside_peers(report["rows"], said, ("tokens",), "peak_GFLOP/s", "GFLOP/s")


def _beside_peers(
    rows: list[dict[str, Any]], said: Callable[[dict[str, Any]], str], place: tuple[str, ...], limit: str, speed: str
) -> Iterator[dict[str, Any]]:
    """A line for each row of ours, the ceiling in tok/s, beside the fastest peer of its kind at the same place."""
    measured = [row for row in rows if "ratio" in row]
    for row in measured:
        if row["engine"].startswith("baize "):
            same = [other for other in measured if all(other[key] == row[key] for key in ("kind", *place))]
            greedy = not row["engine"].endswith(" sampled")  # as peers are
            peers = [other for other in same if greedy and not other["engine"].startswith("baize ")]
            best = max(peers, key=lambda other: other["tok/s"], default=None)
            beside = () if best is None else (best["engine"], best["tok/s"], best["ratio"])
            yield line(said(row), row["tok/s"], "tok/s", row["tok/s"] * row[limit] / row[speed], row["share"], *beside)


def start_lines(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from peers import PEERS

    by_engine = {row["engine"]: row for row in report["rows"] if "runs" in row}
    for name, row in by_engine.items():
        if name.startswith("baize "):
            kind = name.split()[1]
            peers = [by_engine[peer.name] for peer in PEERS[kind] if peer.name in by_engine]
            best = min(peers, key=lambda other: other["to_first_token_s"], default=None)
            ours = row["to_first_token_s"]
            beside = () if best is None else (best["engine"], best["to_first_token_s"], best["to_first_token_s"] / ours)
            yield line(f"to the first token, {name.removeprefix('baize ')}", ours, "s", "", "", *beside)


def kernel_lines(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row in report["rows"]:
        if "us" in row and row["rows"] == 1 and not row["op"].startswith(("sample", "advance", "embed")):
            torch_us = row["torch_us"]
            yield line(f"{row['op']} {row['kind']}, 1 row", row["us"], "us", row["us"] * row["share"], row["share"], "torch",
                       torch_us, row["speedup"])  # fmt: skip
    for name, shares in report["of_step"].items():
        for op in ("sample greedy", "sample top_k top_p"):
            yield line(f"{op} in a step of {name}", shares[op] * 100, "% of the step")


def speculate_lines(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row in report["rows"]:
        if "speedup" in row:
            what = f"speculate {row['what']} {row['kind']}, batch {row['batch']}, {row['prompts']} ({row['model']})"
            yield line(what, row["speedup"], "x plain", row["ceiling"], row["reached"])


LINES: dict[str, Callable[[dict[str, Any]], Iterator[dict[str, Any]]]] = {
    "diff_add": diff_add_lines, "recover": recover_lines, "decode": decode_lines, "prefill": prefill_lines,
    "start": start_lines, "kernels": kernel_lines,
    "speculate": speculate_lines,
}  # fmt: skip


def keep(options: argparse.Namespace, steps: dict[str, dict[str, Any]]) -> None:
    """Writes what is known so far."""
    whole = {
        "bench": "standard", "device": device_name(), "commit": commit(), "preset": options.preset,
        "versions": versions("torch", "numpy", "transformers", "llama_cpp_python", "ctranslate2"), "steps": steps,
    }  # fmt: skip
    options.json.write_text(json.dumps(whole, indent=1) + "\n")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default="125m")
    options.add_argument("--only", nargs="+", choices=LINES, help="some of the steps")
    options.add_argument(
        "--folder", type=Path, help="where the models' files are kept for later runs (default: temporary)"
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="write all reports there")
    options.add_argument("--ik_llama", type=Path, metavar="PATH", help="as of bench_decode.py and bench_prefill.py")
    chosen = options.parse_args()
    found: dict[str, dict[str, Any]] = {}
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() if chosen.folder is None else nullcontext(chosen.folder) as folder:
        for step in steps(chosen.preset, Path(folder), chosen.ik_llama):
            if chosen.only is None or step.name in chosen.only:
                print(f"== {step.name}: {' '.join(step.command)}", flush=True)
                found[step.name] = one = run(step, step.seconds, shown=False)
                made = list(LINES[step.name](one["report"])) if "report" in one else []
                lines += made
                if made:
                    print(*table(made), sep="\n", flush=True)
                if chosen.json:
                    keep(chosen, found)
                if one.get("problem") == "interrupted":
                    break
    print()
    print(*table(lines), sep="\n")
    failed = [name for name, one in found.items() if "problem" in one]
    seconds = sum(one["seconds"] for one in found.values())
    print(f"\n{chosen.preset}, {device_name()}, commit {commit()}: {len(found)} steps in {seconds:.0f} s"
          + (f", failed: {', '.join(failed)}" if failed else ""))  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
