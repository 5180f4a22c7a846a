"""Our engine and its peers on a CPU in one run: their tokens are checked, then they are timed in turns.

Every engine has a process of its own that lives for the turns of its group and waits between them; only ik_llama.cpp's
binaries are started anew in each turn, and not checked (benchmarks/ik_llama.py). In each turn the memory's read speed, or the
matrix product's peak, is measured too: both drift on machines that are shared, and a share is of what the machine did in
those turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ik_llama
import torch
from bandwidth import ReadProbe
from common import FIRST, GAP, REHEARSING, Spread, latencies
from model_files import Store
from models import Decoder
from peers import ENGINES, Child, Ended, Lost, Peer, Timed, installed
from reports import Report, say
from roofline import matmul_peak

from baize_engine.backend.choose import reference_ops
from baize_engine.checkpoint.index import read_index
from baize_engine.model import cost
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import Llama
from baize_engine.model.weights import load_weights

CHECKED, PROMPT = 8, 24  # greedy ids checked, tokens of the prompt before them
# How far below the best, in standard deviations of the logits, a chosen id's logit may be in float16's eyes: between those that
# have the same weights the order of summation decides; others move the logits. An id drawn at random is about 4 below.
MARGINS = {"float16": 0.05, "float32": 0.05, "bfloat16": 0.5, "int8": 0.5, "int4": 2.5}
CALM = 0.0 if REHEARSING else 0.05  # seconds before a turn: threads of the last one spin a while for more work


class Oracle:
    """The reference ops on a float16 folder: how good a choice of ids is."""

    def __init__(self, path: Path) -> None:
        config = ModelConfig.from_folder(path)
        weights = load_weights(read_index(path), config, "auto", "cpu")
        self.model = Llama(config, weights, reference_ops("cpu"), "cpu")

    def gap(self, prompt: list[int], rows: list[list[int]]) -> float:
        """The most that an id's logit is below the best after the prompt and the ids before it in its row.

        In standard deviations of the logits; rows are of one length.
        """
        decoder, many = Decoder(self.model, len(rows) * (len(prompt) + len(rows[0]) + 16)), len(rows)
        inputs = [prompt + ids[:-1] for ids in rows]
        logits = decoder.forward(inputs, [decoder.sequence() for _ in rows], all_logits=True)
        logits = logits.unflatten(0, (many, -1))[:, len(prompt) - 1 :]
        chosen = logits.gather(2, torch.tensor(rows)[:, :, None])[:, :, 0]
        return float(((logits.amax(2) - chosen) / logits.std(2)).max())


def random_prompt(length: int, vocabulary: int) -> list[int]:
    return torch.randint(3, vocabulary, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def check(name: str, child: Child, oracle: Oracle, kind: str) -> None:
    """SystemExit where what the engine chooses in two sequences passes the margin of weights of `kind`."""
    prompt = random_prompt(PROMPT, oracle.model.config.vocab_size)
    first, _ = child.ask("start", prompt, 2)
    steps, _ = child.ask("steps", CHECKED - 1)
    check_ids(name, oracle, prompt, [[first, *(ids[row] for ids in steps)] for row in (0, 1)], kind)


def check_ids(name: str, oracle: Oracle, prompt: list[int], rows: list[list[int]], kind: str) -> None:
    """SystemExit where an id that was chosen after the prompt passes the margin of weights of `kind`."""
    gap = oracle.gap(prompt, rows)
    if not gap <= MARGINS[kind]:  # also where it is not a number
        raise SystemExit(
            f"{name}: an id that it chose is {gap:.3g} standard deviations of the logits below the best, wanted at most "
            f"{MARGINS[kind]:g}"
        )


@contextmanager
def group(
    store: Store, kind: str, peers: Sequence[Peer], threads: int
) -> Iterator[tuple[dict[str, Child], dict[str, str]]]:
    """Processes of ours with weights of `kind`, first, and of `peers`, by name, all checked; how peers crashed."""
    paths = {f"baize {kind}": ("baize", store.ours(kind))}
    paths |= {peer.name: (peer.engine, peer.path(store)) for peer in peers}
    oracle = Oracle(store.ours("float16"))
    with ExitStack() as stack:
        found: dict[str, Child] = {}
        crashed: dict[str, str] = {}
        for name, (engine, path) in paths.items():
            try:
                child = Child(engine, path, threads)
                stack.callback(child.close)
                check(name, child, oracle, kind)
                found[name] = child
            except Ended as error:
                if engine == "baize" or not error.crashed:
                    raise
                crashed[name] = str(error)
        yield found, crashed


class Turns:
    """Seconds of each engine over turns, and what the machine was capable of in them.

    A peer that is lost takes no further part, and `ended` says why.
    """

    def __init__(self, children: dict[str, Timed], ceiling: Callable[[], float]) -> None:
        self._children, self._ceiling = dict(children), ceiling
        self.ended: dict[str, str] = {}

    def each(self, one: Callable[[Timed], Any]) -> dict[str, Any]:
        """What `one` gives for each engine."""
        found = {}
        for name, child in list(self._children.items()):
            try:
                found[name] = one(child)
            except Lost as error:
                if name.startswith("baize "):
                    raise
                del self._children[name]
                self.ended[name] = str(error)
        return found

    def run(self, turns: int, one: Callable[[Timed], list[float]]) -> tuple[dict[str, list[float]], float]:
        """The seconds that `one` gives for each engine in `turns` turns, and the median of the ceiling in them."""
        seconds: dict[str, list[float]] = {}
        ceilings = []

        def calm(child: Timed) -> list[float]:
            time.sleep(CALM)
            return one(child)

        for _ in range(turns):
            ceilings.append(self._ceiling())
            for name, found in self.each(calm).items():
                seconds.setdefault(name, []).extend(found)
        return {name: seconds[name] for name in self._children}, Spread.of(ceilings).median


def decode_rows(report: Report, options: argparse.Namespace) -> None:
    """A row for each kind, context, batch and engine; the first step of a turn is not counted, it finds others' caches."""
    probe = ReadProbe(torch.get_num_threads())

    def rows(store: Store, kind: str, peers: Sequence[Peer], children: dict[str, Timed]) -> dict[str, str]:
        config, ours = ModelConfig.from_folder(store.ours(kind)), f"baize {kind}"
        turns, by_name = Turns(children, probe), {peer.name: peer for peer in peers}
        count = options.steps + 1

        def show(name: str, seconds: list[float], firsts: list[float], speed: float, place: dict[str, int]) -> None:
            middle = place["context"] + options.steps // 2  # what a step attends to on the average
            if name in by_name:
                moved = by_name[name].bytes(config, place["batch"], middle)
            else:
                moved = sum(op.bytes for op in cost.decode_step(config, kind, place["batch"], middle, "float32"))
            step = Spread.of(seconds).median
            report.row({
                "engine": name, "kind": kind, **place, **latencies(FIRST, firsts), **latencies(GAP, seconds),
                "tok/s": place["batch"] / step, "GB/s": moved / step / 1e9, "read_GB/s": speed,
                "share": moved / step / 1e9 / speed, "ratio": step / greedy,
            })  # fmt: skip

        for context in options.contexts:
            prompt = random_prompt(context, config.vocab_size)

            def first(child: Timed, prompt: list[int] = prompt) -> list[float]:
                return [child.ask("prefill", prompt)[1]]

            firsts: dict[str, list[float]] = {}
            with report.case(engine=ours, kind=kind, context=context):
                turns.each(first)
                firsts, _ = turns.run(options.runs, first)
            for batch in options.batches if firsts else ():
                place = {"batch": batch, "context": context}
                with report.case(engine=ours, kind=kind, **place):
                    turns.each(lambda child, prompt=prompt, batch=batch: child.ask("start", prompt, batch))
                    steps, speed = turns.run(options.rounds, lambda child: child.ask("steps", count)[1][1:])
                    greedy = Spread.of(steps[ours]).median
                    for name, seconds in steps.items():
                        show(name, seconds, firsts[name], speed, place)
                    alone = Turns({ours: children[ours]}, probe)
                    drawn, speed = alone.run(options.rounds, lambda child: child.ask("sampled", count)[1][1:])
                    show(f"{ours} sampled", drawn[ours], firsts[ours], speed, place)
        return turns.ended

    _each_kind(report, options, rows)


def prefill_rows(report: Report, options: argparse.Namespace) -> None:
    """A row for each kind, length of prompt and engine, of the prompt with the choice of the token after it."""

    def rows(store: Store, kind: str, peers: Sequence[Peer], children: dict[str, Timed]) -> dict[str, str]:
        config, ours = ModelConfig.from_folder(store.ours(kind)), f"baize {kind}"
        turns = Turns(children, lambda: matmul_peak("cpu", torch.float32, 2) * 1e3)
        for tokens in options.tokens:
            prompt = random_prompt(tokens, config.vocab_size)
            flops = sum(op.flops for op in cost.prefill(config, tokens, kind, "float32"))

            def one(child: Timed, prompt: list[int] = prompt) -> list[float]:
                return [child.ask("prefill", prompt)[1]]

            with report.case(engine=ours, kind=kind, tokens=tokens):
                turns.each(one)
                seconds, peak = turns.run(options.runs, one)
                first = Spread.of(seconds[ours]).median
                for name, found in seconds.items():
                    spread = Spread.of(found)
                    speed = flops / spread.median / 1e9
                    report.row({
                        "engine": name, "kind": kind, "tokens": tokens, "ms": spread.median * 1e3, "p20": spread.p20 * 1e3,
                        "p80": spread.p80 * 1e3, "tok/s": tokens / spread.median, "GFLOP/s": speed, "peak_GFLOP/s": peak,
                        "share": speed / peak, "ratio": spread.median / first,
                    })  # fmt: skip
        return turns.ended

    _each_kind(report, options, rows)


def _each_kind(report: Report, options: argparse.Namespace, rows: Callable[..., dict[str, str]]) -> None:
    """`rows` for the engines of each kind; what it says of those that ended, and why others have no rows, is said in theirs."""
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = Store(folder, options.preset)
        for kind in options.kinds:
            with report.case(engine=f"baize {kind}", kind=kind):
                peers, absent = installed(kind, options.peers)
                threads = torch.get_num_threads()
                with group(store, kind, peers, threads) as (checked, crashed):
                    binaries, failed = ik_llama.started(kind, options.ik_llama, store, threads)
                    children = {**checked, **{form.name: child for form, child in binaries.items()}}
                    for name, child in children.items():
                        say(f"{name}: {child.build}")
                        report.facts.setdefault("builds", {})[name] = child.build
                    ended = rows(store, kind, [*peers, *binaries], children)
                for name, why in (absent | crashed | failed | ended).items():
                    report.row({"engine": name, "kind": kind, "tok/s": why})


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a comparison: `peers`, `folder`."""
    parser.add_argument(
        "--peers", nargs="*", choices=ENGINES, default=None, metavar="ENGINE",
        help=f"CPU: engines beside ours, of the same precision: {', '.join(ENGINES)} (without names: all)",
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, default=None,
        help="CPU: where the model's files are kept for later runs (default: temporary)",
    )  # fmt: skip


def chosen_peers(options: argparse.Namespace, default: Sequence[str]) -> list[str]:
    """Names of engines: `default` without --peers, all with it, or those given."""
    return list(default) if options.peers is None else options.peers or list(ENGINES)
