"""Ours and its peers on a CPU in one run: what each chooses is checked, then they are timed in turns.

Every engine has a process of its own that lives for the turns of its group and waits between them. In each turn the memory's
read speed, or the matrix product's peak, is measured too: both drift on machines that are shared, and a share is of what the
machine did in those turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from bandwidth import ReadProbe
from common import Spread
from model_files import Store
from peers import ENGINES, Child, Ended, Peer, installed
from roofline import matmul_peak

from baize_engine.checkpoint.index import read_index
from baize_engine.kernels import reference
from baize_engine.model import cost
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import Llama
from baize_engine.model.weights import load_weights

CHECKED, PROMPT = 8, 24  # greedy ids checked, tokens of the prompt before them
# How far below the best, in standard deviations of the logits, a chosen id's logit may be in float16's eyes: between those that
# have the same weights the order of summation decides; others move the logits. An id drawn at random is about 4 below.
MARGINS = {"float16": 0.05, "float32": 0.05, "bfloat16": 0.5, "int8": 0.5, "int4": 2.5}
CALM = 0.05  # seconds before a turn: threads of the last one spin a while for more work


class Oracle:
    """The reference ops on a float16 folder: how good a choice of ids is."""

    def __init__(self, path: Path) -> None:
        config = ModelConfig.from_folder(path)
        weights = load_weights(read_index(path), config, "auto", "cpu")
        self.model = Llama(config, weights, reference, "cpu")

    def gap(self, prompt: list[int], rows: list[list[int]]) -> float:
        """The most that an id's logit is below the best after the prompt and the ids before it in its row.

        In standard deviations of the logits; rows are of one length.
        """
        cache, many = self.model.new_cache(len(rows) * (len(prompt) + len(rows[0]) + 16)), len(rows)
        inputs = [prompt + ids[:-1] for ids in rows]
        logits = self.model.forward(inputs, [cache.allocate() for _ in rows], cache, all_logits=True)
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
    """Seconds of each engine over turns, and what the machine was capable of in them."""

    def __init__(self, children: dict[str, Child], ceiling: Callable[[], float]) -> None:
        self._children, self._ceiling = children, ceiling

    def run(self, turns: int, one: Callable[[Child], list[float]]) -> tuple[dict[str, Spread], float]:
        """The spread of what `one` gives for each engine in `turns` turns, and the median of the ceiling in them."""
        seconds: dict[str, list[float]] = {name: [] for name in self._children}
        ceilings = []
        for _ in range(turns):
            ceilings.append(self._ceiling())
            for name, child in self._children.items():
                time.sleep(CALM)
                seconds[name] += one(child)
        return {name: Spread.of(many) for name, many in seconds.items()}, Spread.of(ceilings).median


def decode_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each kind, context, batch and engine; the first step of a turn is not counted, it finds others' caches."""
    probe = ReadProbe(torch.get_num_threads())

    def rows(store: Store, kind: str, peers: Sequence[Peer], children: dict[str, Child]) -> Iterator[dict[str, Any]]:
        config = ModelConfig.from_folder(store.ours(kind))
        turns, by_name = Turns(children, probe), {peer.name: peer for peer in peers}
        for context in options.contexts:
            prompt = random_prompt(context, config.vocab_size)
            firsts, _ = turns.run(options.runs, lambda child, prompt=prompt: [child.ask("prefill", prompt)[1]])
            for batch in options.batches:
                for child in children.values():
                    child.ask("start", prompt, batch)
                steps, speed = turns.run(options.rounds, lambda child: child.ask("steps", options.steps + 1)[1][1:])
                for name, spread in steps.items():
                    if name in by_name:
                        moved = by_name[name].bytes(config, batch, context)
                    else:
                        moved = sum(op.bytes for op in cost.decode_step(config, kind, batch, context, "float32"))
                    first = firsts[name]
                    yield {
                        "engine": name, "kind": kind, "batch": batch, "context": context, "ttft_ms": first.median * 1e3,
                        "ttft_p20": first.p20 * 1e3, "ttft_p80": first.p80 * 1e3, "ms/token": spread.median * 1e3,
                        "p20": spread.p20 * 1e3, "p80": spread.p80 * 1e3, "tok/s": batch / spread.median,
                        "GB/s": moved / spread.median / 1e9, "read_GB/s": speed,
                        "share": moved / spread.median / 1e9 / speed,
                        "ratio": spread.median / steps[f"baize {kind}"].median,
                    }  # fmt: skip

    return _each_kind(options, rows)


def prefill_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each kind, length of prompt and engine, of the prompt with the choice of the token after it."""

    def rows(store: Store, kind: str, peers: Sequence[Peer], children: dict[str, Child]) -> Iterator[dict[str, Any]]:
        config = ModelConfig.from_folder(store.ours(kind))
        turns = Turns(children, lambda: matmul_peak("cpu", torch.float32) * 1e3)
        for tokens in options.tokens:
            prompt = random_prompt(tokens, config.vocab_size)
            flops = sum(op.flops for op in cost.prefill(config, tokens, kind, "float32"))
            for child in children.values():
                child.ask("prefill", prompt)
            seconds, peak = turns.run(options.runs, lambda child, prompt=prompt: [child.ask("prefill", prompt)[1]])
            for name, spread in seconds.items():
                speed = flops / spread.median / 1e9
                yield {
                    "engine": name, "kind": kind, "tokens": tokens, "ms": spread.median * 1e3, "p20": spread.p20 * 1e3,
                    "p80": spread.p80 * 1e3, "tok/s": tokens / spread.median, "GFLOP/s": speed, "peak_GFLOP/s": peak,
                    "share": speed / peak, "ratio": spread.median / seconds[f"baize {kind}"].median,
                }  # fmt: skip

    return _each_kind(options, rows)


def _each_kind(options: argparse.Namespace, rows: Callable[..., Iterator[dict[str, Any]]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = Store(folder, options.preset)
        for kind in options.kinds:
            peers, absent = installed(kind, options.peers)
            with group(store, kind, peers, torch.get_num_threads()) as (children, crashed):
                found += rows(store, kind, peers, children)
            found += [{"engine": name, "kind": kind, "tok/s": why} for name, why in (absent | crashed).items()]
    return found


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
