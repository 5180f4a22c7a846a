"""Speculation against plain decoding: acceptance, tokens a step and the speed-up, by kinds of prompts.

Loops over one model, plain and speculating, answer the same prompts in turns, step by step (benchmarks/step_turns.py), so that
noise meets all of them; times begin after the first tokens. Equal ids and finish reasons are checked before anything is timed,
and in every timed round. Which model answers decides what is accepted, and every row says it: benchmarks/speculation_models.py.

Rows "step" are decode steps of `rows` rows of one sequence, all draft tokens rejected; `to_1`: their time over that of one row.
`ceiling` is the speed-up that the rows of all steps would give at these costs, if proposing took what the proposer says;
`reached` is the measured one over it. `speedup` is the median of the rounds, `low` and `high` the least and the greatest.
`host` is the share of the time outside of C++ plans, on a CPU. Models named PRESET-random show the loss where nothing is
accepted: of 64 ids, pairs come again and go on otherwise; of as many ids as the preset has, they hardly ever come again, and
nothing is proposed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence as Many
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_loop import calls_of_plans
from common import parser
from models import KINDS, let_go
from reports import Report
from shapes import PRESETS
from speculation_models import Folders, Subject, subjects
from step_turns import Answering, Decoded, in_turns

from baize_engine.backend import devices
from baize_engine.generation.loop import MAX_ROWS, Loop
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.speculation.proposer import Prospect
from baize_engine.generation.speculation.speculator import Speculator
from baize_engine.model.kv_cache import BLOCK_SIZE
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import PromptRunner, new_cache
from baize_engine.model.step_costs import StepCosts
from baize_engine.options import NGRAM, SELF_INT4, EngineOptions
from baize_engine.speculate import speculator

COSTED = (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 32)  # rows of the steps whose costs are measured
COST_STEPS, COST_SECONDS = range(8, 65), 1.0  # steps of each number of rows, and how long more than the fewest may take


class Wrong:
    """A proposer of `most` tokens in every step, which no sensible model accepts: its own last token again and again."""

    token_cost = 0.0

    def __init__(self, most: int) -> None:
        self.most = most

    def prospect(self, sequence: Sequence) -> Prospect:
        return Prospect(1.0, self.most)

    def propose(self, wanted: Many[tuple[Sequence, int]]) -> list[list[int]]:
        return [[sequence.token_ids[-1]] * count for sequence, count in wanted]

    def verified(self, sequence: Sequence, proposed: int, accepted: int) -> None:
        pass

    def moved(self, sequence: Sequence) -> None:
        pass


def loop_over(model: Llama, tokens: int, speculates: Speculator | None) -> Loop:
    return Loop(PromptRunner(model, new_cache(model, tokens)), speculator=speculates)


def costs_of_steps(subject: Subject, prompt: list[int]) -> dict[int, float]:
    """Median seconds of a step by its rows, all of one sequence. Steps of different numbers take turns."""
    free, every = StepCosts({1: 1.0, 2: 1.0}), []
    tokens = COST_STEPS.stop + max(COSTED)  # a draft is no longer than what is left
    prompt = prompt[: subject.requests.max_model_len - tokens]
    for rows in COSTED:
        wrong = Speculator(Wrong(rows - 1), free, rows - 1, MAX_ROWS) if rows > 1 else None
        loop = loop_over(subject.model, len(prompt) + tokens + 2 * BLOCK_SIZE, wrong)
        every.append(Answering(loop, [Sequence(prompt, subject.params, tokens)]))
    seconds: dict[int, list[float]] = {rows: [] for rows in COSTED}
    with calls_of_plans() as calls:
        for one in every:
            one.step(calls)  # makes plans
        spent, turns = 0.0, 0
        while turns < COST_STEPS.start or (spent < COST_SECONDS and turns < COST_STEPS.stop - 1):
            for wanted, one in zip(COSTED, every, strict=True):
                rows, took = one.step(calls)
                if rows == wanted:  # not where a guess was right and the answer is at its end
                    seconds[rows].append(took)
                spent += took
            turns += 1
    for one in every:
        one.said()  # raises what went wrong
    return {rows: median(some) for rows, some in seconds.items() if some}


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
        measured = costs_of_steps(subject, longest)
        for rows, seconds in measured.items():
            step = {"rows": rows, "ms": seconds * 1e3, "to_1": seconds / measured[1]}
            self.report.row({"model": subject.what, "kind": kind, "what": "step", **step})
        room = max(self.options.batches) * (len(longest) + self.options.tokens + 2 * BLOCK_SIZE)
        for how in self.options.speculate:
            with self.report.case(model=subject.what, kind=kind, what=how):
                made = speculator(EngineOptions(device=self.device, speculate=self._named(how, kind)), subject.model)
                assert made is not None
                loops = [loop_over(subject.model, room, each) for each in (None, made)]
                for batch in self.options.batches:
                    for asked, prompts in subject.prompts.items():
                        place = {"model": subject.what, "kind": kind, "what": how, "batch": batch, "prompts": asked}
                        with self.report.case(**place):
                            plain, ours = self._rounds(subject, loops, groups(prompts, batch))
                            cells = figures(plain, ours, StepCosts(measured), made.proposer.token_cost)
                            self.report.row({**place, **cells})

    def _named(self, how: str, kind: str) -> str:
        """What the option `speculate` says; the models that this script knows by name are folders to the engine."""
        return how if how in (NGRAM, SELF_INT4) else str(self.folders.of(how, kind)[0])

    def _rounds(
        self, subject: Subject, loops: list[Loop], many: list[list[list[int]]]
    ) -> tuple[list[Decoded], list[Decoded]]:
        """What the plain loop and the other one took in each round of these groups of prompts."""
        if not many:
            raise SystemExit("too few prompts fit the model with their answers")
        many = many[: -(-self.options.prompts // len(many[0]))]
        in_turns(loops, partial(subject.requests.sequences, many[0], subject.params))
        rounds = []
        for _ in range(self.options.rounds):
            took = [in_turns(loops, partial(subject.requests.sequences, group, subject.params)) for group in many]
            rounds.append([Decoded.sum(parts) for parts in zip(*took, strict=True)])
        plain, ours = zip(*rounds, strict=True)
        return list(plain), list(ours)


def figures(plain: list[Decoded], ours: list[Decoded], costs: StepCosts, token_cost: float) -> dict[str, Any]:
    """The cells of a row, of as many rounds of both."""
    speedups = [one.seconds / other.seconds for one, other in zip(plain, ours, strict=True)]
    speedup, plainly, done = median(speedups), Decoded.sum(plain), Decoded.sum(ours)
    ceiling = steps_of(plainly, costs) / (steps_of(done, costs) + done.proposed * token_cost)
    found: dict[str, Any] = {
        "tokens": done.tokens, "proposed": done.proposed,
        "accepted": done.accepted / done.proposed if done.proposed else "", "tokens/step": done.tokens / done.steps,
        "plain tok/s": plainly.tokens / plainly.seconds, "tok/s": done.tokens / done.seconds,
        "speedup": speedup, "low": min(speedups), "high": max(speedups), "ceiling": ceiling, "reached": speedup / ceiling,
    }  # fmt: skip
    if plainly.in_plans:  # on a CPU
        for what, one in (("plain host", plainly), ("host", done)):
            found[what] = 1 - one.in_plans / one.seconds
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
