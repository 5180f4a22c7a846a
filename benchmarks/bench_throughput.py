"""Throughput of many prompts at once, in a seeded mix of lengths like those of conversations: total and output tokens/s.

The engine runs all prompts together, and some of them one by one in the same run, with equal results; these are checked
against the reference ops before anything is timed. The time of prompts is separate: output tok/s counts the rest.
A reader of `Engine.stream_many`, who requests all at once, gets the first token of a sample after `ttft_ms`, including the
queue, and each further one after `gap_ms`, including other prompts. On a GPU all runs once before, to make its graphs.
Facts: `of_batch` is output tok/s over the rate of bench_decode's steps of rows of one length, before and after; `to_alone` are
ratios of together to one by one.
The ceiling of each row is the time that its steps' bytes take at the memory's speed, or their operations at the peak of the
matrix product, whichever is longer, with all prompts begun at once; both are measured in this run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import launch_table
import torch
from arrivals import Arrivals, Rows, arrivals, engine_of, room
from bench_decode import check_by_reference, free_bytes, prompts
from common import parser, quantile
from mix import Mix, mix
from models import KINDS, random_model, transformers_model
from reports import Report
from roofline import bandwidth, ceilings, synchronize
from shapes import PRESETS

from baize_engine import SamplingParams
from baize_engine.backend import devices
from baize_engine.generation.loop import MAX_ROWS, Loop
from baize_engine.model import cost
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import PromptPiece, PromptRunner, new_cache

CHECKED = 6, 8  # prompts, and tokens of each, that are compared before anything is timed
AGREE = 0.9  # share of first ids in which a peer, which rounds elsewhere, must agree with ours


class TimedPrompts(PromptRunner):
    """A runner that takes the time of its prompts."""

    seconds = 0.0

    def run(self, pieces: Sequence[PromptPiece]) -> None:
        synchronize(self.model.device)
        begin = time.perf_counter()
        super().run(pieces)
        synchronize(self.model.device)
        self.seconds += time.perf_counter() - begin


class Timed:
    """An engine over `model` whose time of prompts is taken apart."""

    def __init__(self, model: Llama, tokens: int) -> None:
        self.cache = new_cache(model, tokens)
        for part in (self.cache.keys, self.cache.values):  # a CPU's memory is there once it is written
            part.zero_()
        self.prompts = TimedPrompts(model, self.cache)
        self.loop = Loop(self.prompts)
        self.engine = engine_of(self.loop)

    def together(self, work: Mix) -> Arrivals:
        return arrivals(self.engine, work.prompts, wanted(work))

    def one_by_one(self, work: Mix) -> Arrivals:
        found = Arrivals([], [])
        for ids, params in zip(work.prompts, wanted(work), strict=True):
            one = arrivals(self.engine, [ids], [params])
            found.ids.extend(one.ids)
            found.seconds.extend(one.seconds)
        return found

    def row(self, name: str, work: Mix, run: Callable[[Mix], Arrivals]) -> tuple[Arrivals, dict[str, Any]]:
        """Runs it once: (what came when, a row of the report)."""
        self.loop.pool.forget()  # all prompts are computed, whatever ran before
        self.prompts.seconds, begin = 0.0, time.perf_counter()
        found = run(work)
        made = rates(name, work, time.perf_counter() - begin, self.prompts.seconds)
        for what, seconds in (("ttft", found.firsts), ("gap", found.gaps)):
            if seconds:  # there is no gap where each has one token
                made |= {f"{what}_ms": quantile(seconds, 0.5) * 1e3, f"{what}_p99": quantile(seconds, 0.99) * 1e3}
        return found, made | {"gaps": len(found.gaps)}


def wanted(work: Mix) -> list[SamplingParams]:
    return [SamplingParams(max_new_tokens=length, ignore_eos=True) for length in work.outputs]


def rates(name: str, work: Mix, seconds: float, prefill: float) -> dict[str, Any]:
    before, after = sum(map(len, work.prompts)), sum(work.outputs)
    return {
        "engine": name, "prompts": len(work.prompts), "prompt_tokens": before, "output_tokens": after, "seconds": seconds,
        "prefill_s": prefill, "total_tok/s": (before + after) / seconds, "output_tok/s": after / (seconds - prefill),
    }  # fmt: skip


def ceiling(model: Llama, kind: str, work: Mix, rows: int, limits: dict[str, float]) -> float:
    """Output tok/s at which the memory or the arithmetic would allow steps of at most `rows` samples at a time."""
    activation = str(model.dtype).removeprefix("torch.")
    speed, peak = bandwidth(limits) * 1e9, limits["matmul_TFLOP/s"] * 1e12
    queue = [len(ids) + length // 2 for ids, length in zip(work.prompts, work.outputs, strict=True)]
    context = round(sum(queue) / len(queue))  # what a step attends to on the average
    waiting, seconds = list(reversed(work.outputs)), 0.0
    running: list[int] = []
    many: list[int] = []
    while waiting or running:
        while waiting and len(running) < rows:
            running.append(waiting.pop() - 1)  # a prompt's first token is not a step's
        running = [length - 1 for length in running if length > 0]
        many.append(len(running))
    for count, same in groupby(sorted(many)):
        if count:
            costs = cost.decode_step(model.config, kind, count, context, activation)
            needed = max(sum(op.bytes for op in costs) / speed, sum(op.flops for op in costs) / peak)
            seconds += len(list(same)) * needed
    return sum(work.outputs) / seconds


def check(timed_engine: Timed, work: Mix) -> None:
    """SystemExit unless prompts say together what they say one by one."""
    count, tokens = CHECKED
    few = Mix(work.prompts[:count], [tokens] * min(count, len(work.prompts)))
    same(timed_engine.together(few).ids, timed_engine.one_by_one(few).ids)


def same(together: list[list[int]], apart: list[list[int]]) -> None:
    for number, (ours, alone) in enumerate(zip(together, apart, strict=False)):
        if ours != alone:
            raise SystemExit(f"prompt {number} says {ours[:16]} among others and {alone[:16]} by itself")


def transformers_row(model: Llama, options: argparse.Namespace, work: Mix, ours: Sequence[list[int]]) -> dict[str, Any]:
    """transformers' generate, all prompts padded to one batch, until the longest has its tokens; only wanted ones count."""
    made = transformers_model(model, PRESETS[options.preset], model.dtype)
    longest = max(map(len, work.prompts))
    ids = torch.zeros(len(work.prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for line, (prompt, row) in enumerate(zip(work.prompts, ids, strict=True)):
        row[longest - len(prompt) :] = torch.tensor(prompt)
        mask[line, longest - len(prompt) :] = 1
    settings = {"attention_mask": mask.to(model.device), "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def run(tokens: int) -> torch.Tensor:
        return made.generate(ids.to(model.device), max_new_tokens=tokens, min_new_tokens=tokens, **settings)[
            :, longest:
        ]

    first = min(CHECKED[1], *work.outputs)
    agree("transformers", run(first).tolist(), ours, first)
    begin = time.perf_counter()
    run(max(work.outputs))
    synchronize(model.device)
    return rates("transformers, one padded batch", work, time.perf_counter() - begin, 0.0)


def vllm_row(options: argparse.Namespace, work: Mix, ours: Sequence[list[int]]) -> dict[str, Any]:
    """vLLM over the same weights as float16 files."""
    from model_files import Store
    from vllm import LLM
    from vllm import SamplingParams as Theirs

    with tempfile.TemporaryDirectory() as folder:
        path = Store(Path(folder), options.preset).ours("float16")
        model = LLM(str(path), skip_tokenizer_init=True, dtype="float16", seed=0, enable_prefix_caching=False)
        many = [{"prompt_token_ids": ids} for ids in work.prompts]
        each = [Theirs(temperature=0.0, max_tokens=n, ignore_eos=True, detokenize=False) for n in work.outputs]
        first = min(CHECKED[1], *work.outputs)
        agree("vllm", [out.outputs[0].token_ids for out in model.generate(many, each)], ours, first)
        begin = time.perf_counter()
        model.generate(many, each)
        return rates("vllm", work, time.perf_counter() - begin, 0.0)


def agree(name: str, theirs: Sequence[Sequence[int]], ours: Sequence[Sequence[int]], first: int) -> None:
    """SystemExit where a peer's first ids are not ours: then it does not run the same model."""
    equal = sum(list(a[:first]) == list(b[:first]) for a, b in zip(theirs, ours, strict=True)) / len(theirs)
    if equal < AGREE:
        raise SystemExit(
            f"{name}: {equal:.0%} of the prompts have the same first {first} ids as ours, wanted {AGREE:.0%}"
        )


def peer_rows(report: Report, model: Llama, options: argparse.Namespace, work: Mix, ours: list[list[int]]) -> None:
    for name in options.peers:
        if not find_spec(name):
            report.row({"engine": name, "output_tok/s": "not installed"})
        elif name == "vllm" and (model.device == "cpu" or options.kind != "float16"):
            report.row({"engine": name, "output_tok/s": "not run: needs a GPU and --kind float16"})
        else:
            with report.case(engine=name):
                if name == "vllm":
                    report.row(vllm_row(options, work, ours))
                else:
                    report.row(transformers_row(model, options, work, ours))


def bench(report: Report, options: argparse.Namespace, device: str) -> None:
    shape, name = PRESETS[options.preset], f"baize {options.kind}"
    model = random_model(shape, options.kind, device)
    check_by_reference(model, shape.vocabulary)
    report.facts |= (limits := ceilings(device, model.dtype))
    aside = new_cache(model, room(options.rows, options.context, options.steps + 1))
    (prompt,) = prompts(1, options.context, shape.vocabulary)
    batch = Rows(model, aside, prompt, options.rows)
    rates_of_batch: list[float] = []

    def again() -> None:
        """Steps of bench_decode once more."""
        with report.case(engine=f"{name}, batch of {options.rows}"):
            _, seconds = batch(options.steps + 1)
            rates_of_batch.extend(options.rows / each for each in seconds[1:])

    work = mix(
        options.prompts, options.prompt_mean, options.output_mean, shape.positions, shape.vocabulary, options.seed
    )
    needed = sum(-(-(len(ids) + n) // 16) * 16 for ids, n in zip(work.prompts, work.outputs, strict=True))
    fits = free_bytes(device) // 2 // (cost.kv_bytes_per_token(model.config, model.dtype.itemsize))
    tokens = report.facts["cache_tokens"] = options.cache_tokens or max(shape.positions, min(needed, fits))
    engine = Timed(model, tokens)
    check(engine, work)
    if device != "cpu":
        engine.together(work)  # captures a graph for each number of rows and bound of contexts
    batch(options.steps + 1)
    again()
    found: dict[str, dict[str, Any]] = {}
    ids: list[list[int]] = []
    few = work.part(options.alone)
    for label, run, rows, part in (
        (name, engine.together, MAX_ROWS, work), (f"{name}, one by one", engine.one_by_one, 1, few)
    ):  # fmt: skip
        with report.case(engine=label):
            arrived, row = engine.row(label, part, run)
            same(ids[: len(part.prompts)], arrived.ids)  # the second
            ids = arrived.ids
            row["ceiling_tok/s"] = ceiling(model, options.kind, part, rows, limits)
            row["share"] = row["output_tok/s"] / row["ceiling_tok/s"]
            report.row(row)
            found[label] = row
        if label == name:
            again()
    report.facts[f"batch_{options.rows}_tok/s"] = rate = median(rates_of_batch) if rates_of_batch else "not measured"
    if name in found and rates_of_batch:
        report.facts["of_batch"] = found[name]["output_tok/s"] / rate
    if len(found) == 2:
        ours, alone = found.values()
        for key in ("output_tok/s", "ceiling_tok/s"):
            report.facts[f"to_alone, {key}"] = ours[key] / alone[key]
        peer_rows(report, model, options, few, ids)


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default="125m")
    options.add_argument("--kind", choices=KINDS, default="float16", help="weights")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument("--prompts", type=int, default=64)
    options.add_argument("--prompt_mean", type=int, default=64, help="average tokens of a prompt")
    options.add_argument("--output_mean", type=int, default=192, help="average tokens of an answer")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--cache_tokens", type=int, help="capacity of the KV cache (default: all tokens, as far as they fit)"
    )
    options.add_argument("--alone", type=int, default=12, help="prompts that also run one by one, and by peers")
    options.add_argument("--rows", type=int, default=32, help="rows of the batch of bench_decode's steps")
    options.add_argument("--context", type=int, default=128, help="context of its rows")
    options.add_argument("--steps", type=int, default=48, help="its steps, before and after")
    options.add_argument("--peers", nargs="*", choices=("transformers", "vllm"), default=(), help="without names: all")
    launch_table.add_option(options)
    chosen = options.parse_args()
    positions = PRESETS[chosen.preset].positions
    chosen.context = min(chosen.context, positions - chosen.steps - 2)
    chosen.alone = min(chosen.alone, chosen.prompts)
    if min(chosen.prompts, chosen.alone, chosen.prompt_mean, chosen.output_mean, chosen.context) < 1:
        options.error(
            "--prompts, --alone, --context and the means must be at least 1, and --steps leave room for a context"
        )
    if not (1 <= chosen.rows <= MAX_ROWS and chosen.steps >= 2):
        options.error(f"--rows must be 1 to {MAX_ROWS}, --steps at least 2")
    chosen.peers = ["transformers", "vllm"] if chosen.peers == [] else list(chosen.peers)
    device = devices.resolve_device(chosen.device)
    facts: dict[str, object] = {"preset": chosen.preset, "threads": torch.get_num_threads(), "seed": chosen.seed}
    with (
        launch_table.in_use(chosen.tuned, device) as facts["tuned"],
        Report("throughput", chosen, device, facts) as report,
        report.case(engine=f"baize {chosen.kind}"),
    ):
        bench(report, chosen, device)
    return report.code


if __name__ == "__main__":
    sys.exit(main())
