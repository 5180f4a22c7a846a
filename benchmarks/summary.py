"""A report of profile_step.py as a page of Markdown. Measures nothing, and says what was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reports import cell
from roofline import WHOLE

OF_AN_OP = (
    "op", "calls", "us", "in_step_us", "GB/s", "TFLOP/s", "GFLOP/s", "share", "of_specified", "in_step_of_specified", "of_copy",
    "of_read",
)  # fmt: skip
DRAM = (
    "Counted by ncu, over all calls of a kernel in a step. `op_read`, `op_written`: of all kernels of the op, to set beside "
    "what is modelled of it."
)
MEMORY = "By torch. Peaks are counted from the finished weights on: the state, its first steps and their capture."
START = (
    "`first_step_s`: kernels are compiled or loaded, run once, captured and replayed; `second_state_s`: the same of another "
    "state, for which nothing is compiled or loaded; `compile_s`: of the kernels that were compiled, by Triton."
)
SHARES = ("share", "of_specified", "in_step_of_specified", "of_copy", "of_read")


def markdown(report: Mapping[str, Any]) -> str:
    """The page."""
    measured = [row for row in report["rows"] if "us" in row]
    problems = [row for row in report["rows"] if "problem" in row]
    parts = [f"# {report.get('title', 'decode step')}", *_head(report), *_step(measured)]
    ops = [{key: row[key] for key in OF_AN_OP if key in row} for row in measured if row["op"] != WHOLE]
    parts += _section(
        "Ops", ops,
        "Each op by itself: all its calls in a step. `share` is of the time that its bytes or its arithmetic take at the "
        "ceilings measured here, the others are of the bandwidths named above.",
    )  # fmt: skip
    parts += _section("In the step", report.get("kernels", ()), _lanes(report))
    parts += _section(
        "Consecutive steps", report.get("steps", ()), "As the engine's loop runs them; bubbles are idle time."
    )
    parts += _section("Bytes of memory", report.get("dram", ()), DRAM)
    state = report.get("gpu_state", {})
    parts += _section("State of the GPU", [{"when": when, **values} for when, values in state.items()])
    parts += _section("Memory, GB", [report["memory"]] if report.get("memory") else (), MEMORY)
    start = report.get("start", {})
    parts += _section("Start, seconds", [start] if start else (), START if "second_state_s" in start else "")
    said = [*report.get("notes", ()), *(f"{_case(row)}: {row['problem']}" for row in problems)]
    if "ended" in report:
        said.append(f"the run ended early: {report['ended']}")
    if said:
        parts += ["## Notes", "\n".join(f"- {line}" for line in said)]
    return "\n\n".join(parts) + "\n"


def _head(report: Mapping[str, Any]) -> list[str]:
    lines = {
        "device": report["device"],
        "commit": report["commit"],
        **{key: report[key] for key in ("preset", "kind", "batch", "context", "tuned") if key in report},
        "versions": ", ".join(
            f"{name} {version}" for name, version in report["versions"].items() if version != "absent"
        ),
    }
    if ceilings := report.get("ceilings"):
        lines["measured ceilings"] = ", ".join(f"{cell(value)} {_unit(key)}" for key, value in ceilings.items())
    if specified := report.get("specified_GB/s"):
        lines["specified bandwidth"] = f"{cell(specified)} GB/s"
    return ["\n".join(f"- {key}: {value}" for key, value in lines.items())]


def _unit(key: str) -> str:
    """matmul_TFLOP/s as "TFLOP/s (matmul)"."""
    name, _, unit = key.partition("_")
    return f"{unit} ({name})"


def _step(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    for row in measured:
        if row["op"] == WHOLE:
            shares = "".join(f", {row[key]:.1%} {key.replace('_', ' ')}" for key in SHARES if key in row)
            spread = f"p20 {cell(row['p20'])}, p80 {cell(row['p80'])}"
            return [f"**Step: {cell(row['us'])} µs** ({spread}), {cell(row['tok/s'])} tok/s{shares}"]
    return ["**Step: not measured**"]


def _lanes(report: Mapping[str, Any]) -> str:
    if "step_us" not in report:
        return ""
    whole = f"In a step of {cell(report['step_us'])} µs, {cell(report['gaps_us'])} of them gaps"
    if report["events"] == "ops":
        return f"{whole}; each op called from Python."
    return f"{whole}, under the profiler; waits for the kernel before are in no kernel's time."


def _section(title: str, rows: Iterable[Mapping[str, Any]], before: str = "") -> list[str]:
    rows = list(rows)
    return [f"## {title}", *([before] if before else []), table(rows)] if rows else []


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table of Markdown; shares as percentages."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    lines = [heads, ["---"] * len(heads), *([_cell(head, row.get(head, "")) for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(head: str, value: Any) -> str:
    if head.removesuffix("_A").removesuffix("_B") in SHARES and isinstance(value, float):
        return f"{value:.1%}"
    return cell(value).replace("|", "\\|")


def _case(row: Mapping[str, Any]) -> str:
    return " ".join(str(value) for key, value in row.items() if key != "problem")
