"""What the loop adds to the work: the share of the time that is spent within the backend's calls, on the CPU.

Rows "N rows": N greedy samples that step together, each over its own copy of one prompt's keys and values; the time runs from
the first token to the last as a reader of `Engine.stream_many` sees them arrive. "mixed": prompts and answers of many lengths,
from the call on. `share` is the time within calls of C++ plans over all of it: steps alone, one after another, would have 1.
Both are of the same run, so that the machine's speed does not matter. Ids are checked against the reference ops before
anything is timed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch
from arrivals import Arrivals, Rows, arrivals, engine_of, loop_of, room
from bench_decode import check_by_reference, prompts
from bench_throughput import wanted
from common import parser
from mix import mix
from models import KINDS, random_model
from reports import Report
from shapes import PRESETS

from baize_engine.backend.cpp_ops import Joined
from baize_engine.generation.loop import MAX_ROWS
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import new_cache

MIXED = 48, 60, 40  # prompts, and the mean tokens of a prompt and of an answer
MIXED_TOKENS = 8192  # of the cache


@contextmanager
def calls_of_plans() -> Iterator[list[tuple[float, float]]]:
    """The begin and end of every call of a C++ plan, as they come."""
    found: list[tuple[float, float]] = []
    run = Joined.__call__

    def timed(plan: Joined) -> None:
        begin = time.perf_counter()
        run(plan)
        found.append((begin, time.perf_counter()))

    Joined.__call__ = timed  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Joined.__call__ = run  # type: ignore[method-assign]


def share(calls: list[tuple[float, float]], begin: float, end: float) -> float:
    """The share of [begin, end] that lies within calls."""
    inside = sum(max(0.0, min(stop, end) - max(start, begin)) for start, stop in calls)
    return inside / (end - begin)


def steps(model: Llama, batch: int, options: argparse.Namespace) -> dict[str, object]:
    """The row of `batch` samples; the median of some runs."""
    prompt = prompts(1, options.context, model.config.vocab_size)[0]
    rows = Rows(model, new_cache(model, room(batch, options.context, options.steps + 1)), prompt, batch)
    shares, seconds = [], []
    for number in range(options.runs + 1):
        with calls_of_plans() as calls:
            begin = time.perf_counter()
            found = rows.arrivals(options.steps + 1)
        if number:  # the first makes plans
            first, last = (begin + max(times[n] for times in found.seconds) for n in (0, -1))
            shares.append(share(calls, first, last))
            seconds.append((last - first) / options.steps)
    return {"what": f"{batch} row{'s' * (batch > 1)}", "ms/step": median(seconds) * 1e3, "share": median(shares)}


def mixed(model: Llama, options: argparse.Namespace) -> dict[str, object]:
    """The row of prompts and steps together; the median of some runs."""
    config = model.config
    work = mix(*MIXED, config.max_position_embeddings, config.vocab_size, 0)
    loop = loop_of(model, MIXED_TOKENS)
    engine, shares = engine_of(loop), []
    for number in range(options.runs + 1):
        loop.pool.forget()
        with calls_of_plans() as calls:
            begin = time.perf_counter()
            found: Arrivals = arrivals(engine, work.prompts, wanted(work))
        if number:
            shares.append(share(calls, begin, begin + max(times[-1] for times in found.seconds)))
    return {"what": "mixed", "share": median(shares)}


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default="125m")
    options.add_argument("--kinds", choices=KINDS, nargs="+", default=["float16"], help="types of the weights")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    options.add_argument("--context", type=int, default=128, help="tokens of the prompt before the steps")
    options.add_argument("--steps", type=int, default=32, help="steps timed per run")
    options.add_argument("--runs", type=int, default=3, help="runs per row, of which the median is shown")
    chosen = options.parse_args()
    shape = PRESETS[chosen.preset]
    if chosen.steps < 1 or chosen.runs < 1 or not all(1 <= batch <= MAX_ROWS for batch in chosen.batches):
        options.error(f"--steps and --runs must be at least 1, --batches 1 to {MAX_ROWS}")
    if not 1 <= chosen.context <= shape.positions - chosen.steps - 3:
        options.error(f"--context must be 1 to {shape.positions - chosen.steps - 3}, so that the steps fit")
    with Report("loop", chosen, "cpu", {"preset": chosen.preset, "threads": torch.get_num_threads()}) as report:
        for kind in chosen.kinds:
            with report.case(kind=kind):
                model = random_model(shape, kind, "cpu")
                check_by_reference(model, shape.vocabulary)
                for batch in chosen.batches:
                    report.row({"kind": kind, **steps(model, batch, chosen)})
                report.row({"kind": kind, **mixed(model, chosen)})
    return report.code


if __name__ == "__main__":
    sys.exit(main())
