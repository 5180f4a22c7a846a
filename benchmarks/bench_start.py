"""Start-up: from the start of a process to the first token of a short prompt, with files in the page cache.

Every run is a fresh process, and the rows take turns: the API, `baize generate` as a user types it, and peers. Measured are
the process from its start to the first token and to its end, as its parent sees it, and its peak resident memory (including
pages of mapped files). Of a process that stamps its times itself also: its start with imports, the time from there to the
first token (from the call of from_pretrained), what of that loads the model, and at the first token its memory without mapped
files. The token is checked: by the reference ops it must be nearly the best (benchmarks/side_by_side.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Spread, parser, read_once, run_child
from engines import now_since_start, stamps
from reports import Report
from shapes import PRESETS

PROMPT = 16  # tokens
SAVED, AT_LOAD = ("float16", "int8", "int4"), ("int8", "int4")


@dataclass(frozen=True)
class Start:
    """A row: `command` of the process, which prints the stamps of `engines.stamps`, or is `baize`; weights of `kind`."""

    name: str
    kind: str
    command: list[str]
    is_baize: bool = False


def child(path: str, quantize: str | None, threads: int, prompt: list[int]) -> None:
    """A process that uses the public API; prints its stamps."""
    from baize_engine import Engine, SamplingParams

    imported = now_since_start()
    with Engine.from_pretrained(path, device="cpu", quantize=quantize, threads=threads) as engine:
        loaded = now_since_start()
        (done,) = engine.generate([prompt], SamplingParams(max_new_tokens=1, ignore_eos=True))
        print(stamps(imported, loaded, now_since_start(), done.token_ids[0]))


def starts(options: argparse.Namespace, folder: Path, prompt: list[int]) -> tuple[list[Start], dict[str, str]]:
    """The rows, their files made and read once; and why peers that were asked for have none."""
    from model_files import Store
    from peers import installed

    store, threads, absent = Store(folder, options.preset), str(options.threads), {}
    ids, found = json.dumps(prompt), []

    def ours(name: str, kind: str, path: Path, quantize: str) -> Start:
        read_once(path)
        return Start(name, kind, [sys.executable, __file__, "--child", str(path), quantize, threads, ids])

    record = folder / "prompt.jsonl"
    record.write_text(json.dumps({"token_ids": prompt}) + "\n")  # the model has no tokenizer, nor have the peers'

    def typed(kind: str, path: Path) -> Start:
        words = [
            "generate",
            str(path),
            "--device",
            "cpu",
            "--threads",
            threads,
            "--input",
            str(record),
            "--output",
            "-",
        ]
        words += ["--max_new_tokens", "1", "--ignore_eos", "--quiet"]
        return Start(f"baize generate {kind}", kind, [sys.executable, "-m", "baize_engine", *words], is_baize=True)

    for kind in options.kinds:
        found += [ours(f"baize {kind}", kind, store.ours(kind), ""), typed(kind, store.ours(kind))]
    found += [ours(f"baize {kind} at load", kind, store.ours("float16"), kind) for kind in options.at_load]
    script = str(Path(__file__).with_name("engines.py"))
    for kind in options.kinds:
        peers, missing = installed(kind, options.peers)
        absent |= missing
        for peer in peers:
            read_once(path := peer.path(store))
            found.append(Start(peer.name, kind, [sys.executable, script, peer.engine, str(path), threads, ids]))
    return found, absent


def run(start: Start, check: Callable[[str, int, str], None]) -> dict[str, float]:
    """Seconds and bytes of one process; SystemExit where it fails or its token is wrong."""
    with tempfile.TemporaryFile() as notes:
        done = run_child(start.command, notes if start.is_baize else subprocess.STDOUT)
        notes.seek(0)
        if done.code:
            said = done.output + notes.read().decode()
            raise SystemExit(f"{start.name}: its process ended with {done.code}\n{said[-2000:]}")
    last = json.loads(done.output.splitlines()[-1])
    found: dict[str, float] = {"whole": done.wall, "peak": done.peak}
    if start.is_baize:
        check(start.name, last["completions"][0]["token_ids"][0], start.kind)
        return found | {"since_start": done.first}
    check(start.name, last["token"], start.kind)
    return found | {
        "since_start": last["first"], "first": last["first"] - last["imported"], "load": last["loaded"] - last["imported"],
        "imports": last["imported"], "own": last["own"],
    }  # fmt: skip


def row(name: str, runs: list[dict[str, float]]) -> dict[str, Any]:
    def median(key: str) -> float:
        return Spread.of(each[key] for each in runs).median

    since_start = Spread.of(each["since_start"] for each in runs)
    found: dict[str, Any] = {
        "engine": name, "start_to_token_s": since_start.median, "p20": since_start.p20, "p80": since_start.p80,
        "process_s": median("whole"), "peak_MiB": median("peak") / (1 << 20), "runs": len(runs),
    }  # fmt: skip
    if "first" in runs[0]:
        found |= {
            "start_and_imports_s": median("imports"), "to_first_token_s": median("first"), "of_it_load_s": median("load"),
            "own_MiB": median("own") / (1 << 20),
        }  # fmt: skip
    return found


def bench(report: Report, options: argparse.Namespace, folder: Path) -> None:
    """A row for each way to start, as soon as the last turn is at it; one that fails takes no further turn."""
    from side_by_side import Oracle, check_ids, random_prompt

    prompt = random_prompt(PROMPT, PRESETS[options.preset].vocabulary)
    rows, absent = starts(options, folder, prompt)
    from model_files import Store

    oracle = Oracle(Store(folder, options.preset).ours("float16"))
    seen: set[tuple[str, int]] = set()

    def check(name: str, token: int, kind: str) -> None:
        if (name, token) not in seen:
            check_ids(name, oracle, prompt, [[token]], kind)
        seen.add((name, token))

    for name, reason in absent.items():
        report.row({"engine": name, "start_to_token_s": reason})
    found: dict[str, list[dict[str, float]]] = {start.name: [] for start in rows}
    for turn in range(options.runs):
        for start in (start for start in rows if len(found[start.name]) == turn):  # it has not failed
            with report.case(engine=start.name):
                found[start.name].append(run(start, check))
                if turn == options.runs - 1:
                    report.row(row(start.name, found[start.name]))


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        path, quantize, threads, ids = sys.argv[2:]
        child(path, quantize or None, int(threads), json.loads(ids))
        return 0
    from side_by_side import add_options, chosen_peers

    options = parser(__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default="125m")
    options.add_argument("--kinds", choices=SAVED, nargs="*", default=list(SAVED), help="saved weights")
    options.add_argument(
        "--at_load", choices=AT_LOAD, nargs="*", default=list(AT_LOAD), help="weights quantised while they load"
    )
    options.add_argument("--runs", type=int, default=5, help="processes per row")
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add_options(options)
    chosen = options.parse_args()
    if min(chosen.runs, chosen.threads) < 1:
        options.error("--runs and --threads must be at least 1")
    chosen.peers = chosen_peers(chosen, [])
    facts = {"preset": chosen.preset, "threads": chosen.threads, "prompt": PROMPT}
    with (
        Report("start", chosen, "cpu", facts) as report,
        tempfile.TemporaryDirectory() if chosen.folder is None else nullcontext(chosen.folder) as folder,
    ):
        bench(report, chosen, Path(folder))
    return report.code


if __name__ == "__main__":
    sys.exit(main())
