"""`make gpu-tune`: finds the fastest launch settings for this GPU and writes its table (kernels/tuned/README.md).

For each model size, type of weights and batch, the ops of a step are measured in chains (benchmarks/chains.py), and their
settings (kernels/settings.py) tried one by one, each against the best so far, in turn. A value is kept if it saves more than
noise; what was kept is measured once more against the rule. Before a value counts, all results must have the bits of the
rules'. Kernels are compiled ahead by other processes. The table is written after each chain, and an entry of an older table
of the same card stays where this run has none. `--device cpu` rehearses: every line runs, over reference ops at a tiny size.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import chains
import torch
import tuner
from chains import Chain
from common import parser
from in_turn import Measured, OnGpu, OnHost, Timer
from precompile import NOW, Compilers, Job, jobs
from reports import Report, say
from shapes import PRESETS
from table_file import Card, TableFile
from triton.runtime.errors import OutOfResources
from tuner import BITS, Cell, Move, Plan, Turns

from baize_engine.backend import devices
from baize_engine.kernels import launch, reference, tuned
from baize_engine.kernels.settings import TUNED_ROWS
from baize_engine.model.config import ModelConfig

REHEARSED = ("tiny",)
REHEARSED_VIEWS = (16, 64)  # tokens of context
REHEARSED_JOBS, REHEARSED_SECONDS = 2, 120.0  # kernels that a rehearsal compiles, and the longest it waits for one
REHEARSAL = Card("rehearsal without a GPU", (9, 0), 1)


class OutOfTime(Exception):
    """`--seconds` have passed."""


class Tuning:
    """A run over cells."""

    def __init__(
        self, ops: Any, device: str, timer: Timer, dependent: bool, compilers: Compilers, report: Report, file: TableFile,
        left: Callable[[], float],
    ) -> None:  # fmt: skip
        self._ops, self._device, self._timer, self._dependent = ops, device, timer, dependent
        self._compilers, self._report, self._file, self._left = compilers, report, file, left
        self._known: dict[tuple[Any, ...], Any] = {}  # settings found in this run, of attention and the sampler

    def ask(self, cell: Cell) -> None:
        """Has the kernels of a cell compiled that are sure to be wanted."""
        config = config_of(cell)
        for name in ("layers", "head", "sample"):
            made = chains.of_ops(reference, config, cell.kind, cell.batch, name)
            moves = list(tuner.moves(made.ops))
            self._compilers.ask(jobs(cell.preset, cell.kind, made.ops, moves, tuner.rules(made.ops), self._dependent))

    def cell(self, cell: Cell) -> None:
        """Measures the chains of a cell and adds to the table what it finds."""
        config = config_of(cell)
        views: Sequence[int]
        views, touched = (chains.CONTEXTS, chains.TOUCHED) if self._device != "cpu" else (REHEARSED_VIEWS, 0)
        if (("attention", 16, (config.num_heads, config.num_kv_heads, config.head_dim)), cell.batch) in self._known:
            views = views[:1]  # what is beside it is not measured at the others
        given = self._ops, config, cell.kind, cell.batch, self._device
        tried: list[str] = []
        begin, count = time.perf_counter(), 0
        for make in (
            partial(chains.layers, *given, views, touched),
            partial(chains.head, *given, touched),
            partial(chains.sampler, self._ops, config.vocab_size, cell.batch, self._device),
        ):
            chain = make()
            ops = tuple(op for op in chain.ops if (op.key, op.rows) not in self._known)
            if ops:
                count += self._chain(cell, chain, ops, tried)
            del chain
        self._report.facts.setdefault("tried", {})[str(cell)] = tried
        self._report.row(
            {"cell": str(cell), "op": "all", "tried": len(tried), "kept": count, "s": time.perf_counter() - begin}
        )

    def _chain(self, cell: Cell, chain: Chain, ops: tuple[tuner.Op, ...], tried: list[str]) -> int:
        """Tunes `ops` of a chain; how many settings are better than the rules."""
        start = {op.name: self._known.get((op.key, op.rows), op.rule) for op in chain.ops}
        for op in chain.ops:
            self._compiled(cell, op, start[op.name])
        measured = Measured(chain, start, self._timer)

        def compare(best: Plan, plan: Plan, move: Move) -> Turns | None:
            try:
                for op in move.ops:
                    if problem := self._compiled(cell, op, plan[op.name]):
                        raise RuntimeError(problem)
                return measured.compare(best, plan, chain.views(move.ops))
            except OutOfTime:
                raise
            except Exception as error:  # noqa: BLE001  said in a row: the value is left out
                tried.append(f"{move.names} {move.aspect} {said(move.values)}: left out")
                self._left_out(cell, move, error)
                return None

        def note(move: Move, plan: Plan, turns: Turns, kept: bool) -> None:
            gain = 1 - turns.tried_us / turns.best_us
            text = f"{move.names} {move.aspect} {said(move.values)}: {turns.tried_us:.4g} us, {gain:+.2%}"
            tried.append(text + " kept" * kept)
            if not kept and move.aspect != "confirmed":
                say(f"{cell}: {text}")
                return
            us = {"us": turns.tried_us, "before_us": turns.best_us, "gain": gain, "kept": kept}
            self._report.row({**named(cell, move), **us})
            if kept and move.aspect != "confirmed":
                self._ask_for_rest(cell, move, plan)

        best = tuner.descend(ops, start, self._dependent, compare, note)
        found = tuner.confirm(ops, start, best, compare, note)
        for op in ops:
            if op.op in ("attention", "sample"):
                self._known[op.key, op.rows] = found[op.name].settings
        self._file.add(ops, found)
        return sum(one.settings != op.rule for op, one in ((op, found[op.name]) for op in ops))

    def _compiled(self, cell: Cell, op: tuner.Op, how: Any) -> str | None:
        """Waits for the kernel of an op; what is wrong with it."""
        if self._left() <= 0:
            raise OutOfTime
        try:
            return self._compilers.problem(Job.of(cell.preset, cell.kind, op, how, self._dependent), self._left())
        except TimeoutError as error:
            raise OutOfTime from error

    def _ask_for_rest(self, cell: Cell, kept: Move, plan: Plan) -> None:
        """Has the kernels compiled to which the values of other aspects come now that one was kept."""
        for op in kept.ops:
            later = [move for move in tuner.moves((op,)) if move.aspect != kept.aspect]
            self._compilers.ask(jobs(cell.preset, cell.kind, [op], later, plan, self._dependent), NOW)

    def _left_out(self, cell: Cell, move: Move, error: Exception) -> None:
        """A row for a value that failed. What this card has no room for is no fault; other bits and other errors are."""
        with self._report.case(**named(cell, move)):
            if not isinstance(error, OutOfResources):
                raise error
            lines = str(error).splitlines() or [""]
            self._report.row({**named(cell, move), "problem": f"left out: {lines[0]}"})


def named(cell: Cell, move: Move) -> dict[str, Any]:
    """The keys of a row."""
    return {"cell": str(cell), "op": move.names, "aspect": move.aspect, "value": said(move.values)}


def said(values: Any) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def config_of(cell: Cell) -> ModelConfig:
    shape = PRESETS[cell.preset]
    return ModelConfig.from_dict(shape.config(shape.vocabulary, "float16"))


def slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def rehearse_compiling(compilers: Compilers, cell: Cell, report: Report) -> None:
    """A kernel or two through the processes that compile ahead."""
    with report.case(cell=str(cell), op="compile"):
        ops = chains.of_ops(reference, config_of(cell), cell.kind, cell.batch, "layers").ops[:REHEARSED_JOBS]
        wanted = jobs(cell.preset, cell.kind, ops, [], tuner.rules(ops), True)
        compilers.ask(wanted)
        for job in wanted:
            if problem := compilers.problem(job, REHEARSED_SECONDS):
                raise SystemExit(f"{job.op.name} does not compile: {problem}")


def run(options: argparse.Namespace, device: str) -> int:
    begin, on_gpu = time.perf_counter(), device != "cpu"
    place = torch.device(device)
    card = Card.of(place) if on_gpu else REHEARSAL
    dependent = launch.dependent_launch(place) if on_gpu else True
    file = TableFile(options.out or tuned.FOLDER / f"{slug(card.gpu)}.json", card)
    many = tuner.cells(options.presets, options.kinds, options.batches)
    left = [str(cell) for cell in many]
    facts = {"card": asdict(card), "table": str(file.path), "kept_of_before": file.kept, "not_measured": left}
    with ExitStack() as stack:
        report = stack.enter_context(Report("tune_kernels", options, device, facts))
        capability = 10 * card.capability[0] + card.capability[1]
        compilers = stack.enter_context(Compilers(capability, dependent, options.processes))
        if file.kept:
            say(f"{file.path}: {file.kept} entries of this card are kept where this run measures nothing")
        ops, ahead = (chains.kernels(), compilers) if on_gpu else (reference, Compilers(capability, dependent, 0))
        timer: Timer = OnGpu(place) if on_gpu else OnHost()
        if on_gpu:
            stack.enter_context(torch.cuda.device(place))
        stack.enter_context(torch.inference_mode())
        tuning = Tuning(
            ops, device, timer, dependent, ahead, report, file,
            lambda: options.seconds - (time.perf_counter() - begin),
        )  # fmt: skip
        for cell in many:
            tuning.ask(cell)
        if not on_gpu:
            rehearse_compiling(compilers, many[0], report)
        torch.manual_seed(0)
        gc.collect()
        gc.freeze()  # torch before 2.9 collects at every capture
        for cell in many:
            with report.case(cell=str(cell)):
                try:
                    tuning.cell(cell)
                except OutOfTime:
                    break
                left.remove(str(cell))
            if on_gpu:
                torch.cuda.empty_cache()
        report.facts |= {"compiled": compilers.compiled, "seconds": round(time.perf_counter() - begin, 1)}
        if left:
            say(f"not measured, after {report.facts['seconds']:.0f} s: {', '.join(left)}")
        say(f"{file.path}: {len(tuner.entries(file.known))} entries")
    return report.code


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument(
        "--presets", choices=PRESETS, nargs="+", default=None, help="default: 13b 7b 30b 65b (CPU: tiny)"
    )
    options.add_argument("--kinds", choices=BITS, nargs="+", default=list(BITS), help="types of the weights")
    options.add_argument(
        "--batches",
        type=int,
        choices=TUNED_ROWS,
        nargs="+",
        default=None,
        help="rows of a step (default: all, CPU: 1 2)",
    )
    options.add_argument("--device", default="auto", help="auto, cuda, cuda:N, or cpu for a rehearsal")
    options.add_argument("--seconds", type=float, default=330, help="time after which the rest is not measured")
    options.add_argument(
        "--processes", type=int, default=None, help="processes that compile ahead (default: 12, CPU: 1)"
    )
    options.add_argument(
        "--out", type=Path, metavar="FILE", default=None, help="the table; kernels/tuned/<gpu>.json (CPU: none)"
    )
    chosen = options.parse_args()
    device = devices.resolve_device(chosen.device)
    on_gpu = device != "cpu"
    chosen.presets = chosen.presets or (list(tuner.PRESETS) if on_gpu else list(REHEARSED))
    chosen.batches = chosen.batches or (list(TUNED_ROWS) if on_gpu else [1, 2])
    chosen.processes = (12 if on_gpu else 1) if chosen.processes is None else chosen.processes
    if chosen.seconds <= 0 or chosen.processes < 0:
        options.error("--seconds must be greater than 0, --processes 0 or more")
    if chosen.out and not chosen.out.resolve().parent.is_dir():
        options.error(f"--out is {chosen.out}, wanted a file in a folder that exists")
    if on_gpu:
        return run(chosen, device)
    if other := set(chosen.presets) - set(REHEARSED):
        options.error(f"--presets has {sorted(other)[0]}, wanted {' '.join(REHEARSED)} where nothing is measured (CPU)")
    if chosen.out and chosen.out.resolve().parent == tuned.FOLDER.resolve():
        options.error(f"--out is {chosen.out}, wanted another folder where nothing is measured (CPU)")
    with tempfile.TemporaryDirectory() as folder:
        chosen.out = chosen.out or Path(folder) / "rehearsed.json"
        return run(chosen, device)


if __name__ == "__main__":
    sys.exit(main())
