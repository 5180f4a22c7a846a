"""Speculation against plain decoding: acceptance, tokens a step and the speed-up, by kinds of prompts.

Loops over one model, plain and speculating, answer the same prompts in turns, step by step (benchmarks/step_turns.py), so that
noise meets all of them; times begin after the first tokens. Equal ids and finish reasons are checked before anything is timed,
and in every timed round. Which model answers decides what is accepted, and every row says it: benchmarks/speculation_models.py.

Rows "step" are decode steps of `rows` rows of one sequence, all draft tokens rejected; `to_1`: their time over that of one row.
`ceiling` is the speed-up that the rows of all steps would give at these costs, measured between the rounds, if proposing took
no time; `reached` is the measured one over it. Rates and `speedup` are medians of the rounds, `low` and `high` its extremes.
In batches, where each sequence's keys are read too and rows may be more than were measured, both are rough.
`host` is the share of the time outside of C++ plans, on a CPU. Models named PRESET-random show the loss where nothing is
accepted: of 64 ids, pairs come again and go on otherwise; of as many ids as the preset has, they hardly ever come again, and
nothing is proposed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import parser
from models import KINDS, let_go
from reports import Report
from row_costs import RowCosts, medians
from shapes import PRESETS
from speculation_models import Folders, Subject, subjects
from step_turns import Decoded, in_turns

from baize_engine.backend import devices
from baize_engine.generation.loop import MAX_ROWS, Loop
from baize_engine.model.kv_cache import BLOCK_SIZE
from baize_engine.model.step_costs import StepCosts
from baize_engine.options import NGRAM, SELF_INT4

TURNS = 8  # steps of each number of rows before the rounds; one more is made before each group of answers


def groups(prompts: list[list[int]], batch: int) -> list[list[list[int]]]:
    return [prompts[begin : begin + batch] for begin in range(0, len(prompts) - batch + 1, batch)]


def steps_of(decoded: Decoded, costs: StepCosts) -> float:
    """The time of all steps in steps of one row."""
    return sum(count * costs.of(rows) for rows, count in decoded.rows.items())


class Bench:
    """The rows of one device."""

    def __init__(self, report: Report, options: argparse.Namespace, device: str, folders: Folders) -> None:
        self.report, self.options, self.device, self.folders = report, options, device, folders

    def all(self) -> None:
        options = self.options
        most = max(options.prompts, *options.batches)
        for name in options.models:
            for kind in options.kinds:
                with self.report.case(model=name, kind=kind):
                    for subject in subjects(
                        name, kind, self.folders, self.device, most, options.tokens, options.temperature
                    ):
                        self._subject(subject, kind)
                let_go(self.device)

    def _subject(self, subject: Subject, kind: str) -> None:
        longest = max((ids for many in subject.prompts.values() for ids in many), key=len, default=None)
        if longest is None:
            raise SystemExit("no prompt fits the model with its answer")
        room = max(self.options.batches) * (len(longest) + self.options.tokens + 2 * BLOCK_SIZE)
        plain = subject.loop(room)
        costs = RowCosts(plain.decoder.model, longest)
        for rows, seconds in (measured := medians(costs.turn() for _ in range(TURNS))).items():
            step = {"rows": rows, "ms": seconds * 1e3, "to_1": seconds / measured[1]}
            self.report.row({"model": subject.what, "kind": kind, "what": "step", **step})
        for how in self.options.speculate:
            with self.report.case(model=subject.what, kind=kind, what=how):
                ours = subject.loop(room, self._named(how, kind))
                for batch in self.options.batches:
                    for asked, prompts in subject.prompts.items():
                        place = {"model": subject.what, "kind": kind, "what": how, "batch": batch, "prompts": asked}
                        with self.report.case(**place):
                            many = groups(prompts, batch)[: -(-self.options.prompts // batch)]
                            took = self._rounds(subject, [plain, ours], many, costs)
                            self.report.row({**place, **figures(*took)})

    def _named(self, how: str, kind: str) -> str:
        """What the option `speculate` says; the models that this script knows by name are folders to the engine."""
        return how if how in (NGRAM, SELF_INT4) else str(self.folders.of(how, kind)[0])

    def _rounds(
        self, subject: Subject, loops: list[Loop], many: list[list[list[int]]], costs: RowCosts
    ) -> tuple[list[Decoded], list[Decoded], StepCosts]:
        """What the plain loop and the other one took in each round of these groups of prompts, and a step's costs meanwhile."""
        if not many:
            raise SystemExit("too few prompts fit the model with their answers")
        in_turns(loops, partial(subject.sequences, many[0]))
        rounds, turns = [], []
        for _ in range(self.options.rounds):
            took = []
            for group in many:
                turns.append(costs.turn())
                took.append(in_turns(loops, partial(subject.sequences, group)))
            rounds.append([Decoded.sum(parts) for parts in zip(*took, strict=True)])
        plain, ours = zip(*rounds, strict=True)
        return list(plain), list(ours), StepCosts(medians(turns))


def figures(plain: list[Decoded], ours: list[Decoded], costs: StepCosts) -> dict[str, Any]:
    """The cells of a row, of as many rounds of both."""
    speedups = [one.seconds / other.seconds for one, other in zip(plain, ours, strict=True)]
    speedup, plainly, done = median(speedups), Decoded.sum(plain), Decoded.sum(ours)
    ceiling = steps_of(plainly, costs) / steps_of(done, costs)
    found: dict[str, Any] = {
        "tokens": done.tokens, "proposed": done.proposed,
        "accepted": done.accepted / done.proposed if done.proposed else "", "tokens/step": done.tokens / done.steps,
        "plain tok/s": median(one.tokens / one.seconds for one in plain),
        "tok/s": median(one.tokens / one.seconds for one in ours),
        "speedup": speedup, "low": min(speedups), "high": max(speedups), "ceiling": ceiling, "reached": speedup / ceiling,
    }  # fmt: skip
    if plainly.in_plans:  # on a CPU
        for what, rounds in (("plain host", plain), ("host", ours)):
            found[what] = median(1 - one.in_plans / one.seconds for one in rounds)
    return found


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument(
        "--models",
        nargs="+",
        default=["demo", "260k", "125m"],
        metavar="MODEL",
        help=f"demo, 260k, a preset ({', '.join(PRESETS)}) or PRESET-random, or a model's folder",
    )
    options.add_argument("--kinds", choices=KINDS, nargs="+", default=["float16", "int8", "int4"], help="weights")
    options.add_argument(
        "--speculate",
        nargs="+",
        default=[NGRAM],
        metavar="HOW",
        help=f"{NGRAM}, {SELF_INT4}, or a smaller model as for --models",
    )
    options.add_argument("--batches", type=int, nargs="+", default=[1], help="answers at a time")
    options.add_argument("--prompts", type=int, default=4, help="prompts of each kind, at least a batch")
    options.add_argument("--tokens", type=int, default=160, help="most tokens of an answer")
    options.add_argument("--temperature", type=float, default=0.0, help="of answers; with random weights always 1")
    options.add_argument("--rounds", type=int, default=3, help="of all prompts")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument("--folder", type=Path, help="where models are kept for later runs (default: temporary)")
    chosen = options.parse_args()
    if min(chosen.prompts, chosen.rounds) < 1 or chosen.tokens < 2:
        options.error("--prompts and --rounds must be at least 1, --tokens at least 2")
    if not all(1 <= batch <= MAX_ROWS for batch in chosen.batches):
        options.error(f"--batches must be 1 to {MAX_ROWS}, which is what the engine runs at a time")
    device = devices.resolve_device(chosen.device)
    facts = {"temperature": chosen.temperature, "threads": torch.get_num_threads()}
    with (
        Report("speculate", chosen, device, facts) as report,
        tempfile.TemporaryDirectory() if chosen.folder is None else nullcontext(chosen.folder) as folder,
    ):
        Path(folder).mkdir(parents=True, exist_ok=True)
        Bench(report, chosen, device, Folders(Path(folder))).all()
    return report.code


if __name__ == "__main__":
    sys.exit(main())
