"""Many prompts at once, in a seeded mix of lengths like that of people's conversations: tokens a second, total and output.

The engine runs all prompts together, and some of them one by one in the same run, which must say the same; what it says is
checked against the reference ops before anything is timed. The time of prompts is taken apart: output tok/s is of the rest.
`of_batch` is output tok/s over the rate of bench_decode's steps of as many rows of one length, measured before and after.
The ceiling of each row is the time that its steps' bytes take at the memory's speed, or their operations at the peak of the
matrix product, whichever is longer, with all prompts begun at once; both are measured in this run.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_decode import check_by_reference, free_bytes, prompts
from common import parser, report
from models import KINDS, random_model, transformers_model
from roofline import bandwidth, ceilings, synchronize
from shapes import PRESETS

from baize_engine import Engine, SamplingParams, backend
from baize_engine.model import cost
from baize_engine.model.kv_cache import BLOCK_SIZE
from baize_engine.model.llama import Llama
from baize_engine.model.steps import DecodeSteps, Row

SPREAD = 0.8  # standard deviation of a length's logarithm
CHECKED = 6, 8  # prompts, and tokens of each, that are compared before anything is timed
AGREE = 0.9  # share of first ids in which a peer, which rounds elsewhere, must agree with ours


@dataclass(frozen=True)
class Mix:
    """Prompts, and the tokens wanted after each."""

    prompts: list[list[int]]
    outputs: list[int]

    def part(self, count: int) -> Mix:
        return Mix(self.prompts[:count], self.outputs[:count])


def lengths(count: int, mean: int, most: int, draw: random.Random) -> list[int]:
    """`count` log-normal lengths from 1 to `most`, whose mean is `mean` within rounding and what `most` cuts off."""
    drawn = [draw.lognormvariate(0, SPREAD) for _ in range(count)]
    return [max(1, min(most, round(length * mean * count / sum(drawn)))) for length in drawn]


def mix(count: int, prompt_mean: int, output_mean: int, positions: int, vocabulary: int, seed: int) -> Mix:
    draw = random.Random(seed)
    first, second = (lengths(count, mean, positions // 2, draw) for mean in (prompt_mean, output_mean))
    return Mix([[draw.randrange(3, vocabulary) for _ in range(length)] for length in first], second)


class Timed:
    """An engine over `model` whose time of prompts is taken apart."""

    def __init__(self, model: Llama, tokens: int) -> None:
        self.model, self._run = model, model.prefill
        self.prefill_s = 0.0
        model.prefill = self._prefill  # type: ignore[method-assign]
        self.cache = model.new_cache(tokens)
        for part in (self.cache.keys, self.cache.values):  # a CPU's memory is there once it is written
            part.zero_()
        self.engine = Engine(
            model, self.cache, vocab_size=model.config.vocab_size, eos_token_ids=(),
            max_model_len=model.config.max_position_embeddings, sample=model.ops.sample,
        )  # fmt: skip

    def _prefill(self, *arguments: Any) -> torch.Tensor:
        synchronize(self.model.device)
        begin = time.perf_counter()
        logits = self._run(*arguments)
        synchronize(self.model.device)
        self.prefill_s += time.perf_counter() - begin
        return logits

    def together(self, work: Mix) -> list[list[int]]:
        return [each.token_ids for each in self.engine.generate(work.prompts, wanted(work))]

    def one_by_one(self, work: Mix) -> list[list[int]]:
        pairs = zip(work.prompts, wanted(work), strict=True)
        return [self.engine.generate(ids, params)[0].token_ids for ids, params in pairs]

    def row(
        self, name: str, work: Mix, run: Callable[[Mix], list[list[int]]]
    ) -> tuple[list[list[int]], dict[str, Any]]:
        """Runs it once: (ids, a row of the report)."""
        self.cache.forget()  # all prompts are computed, whatever ran before
        self.prefill_s, begin = 0.0, time.perf_counter()
        ids = run(work)
        return ids, rates(name, work, time.perf_counter() - begin, self.prefill_s)


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
    few = Mix(work.prompts[:count], [tokens] * count)
    same(timed_engine.together(few), timed_engine.one_by_one(few))


def same(together: list[list[int]], apart: list[list[int]]) -> None:
    for number, (ours, alone) in enumerate(zip(together, apart, strict=False)):
        if ours != alone:
            raise SystemExit(f"prompt {number} says {ours[:16]} among others and {alone[:16]} by itself")


class Steps:
    """bench_decode's steps: `rows` sequences of one length, each with blocks of its own."""

    def __init__(self, model: Llama, rows: int, context: int, steps: int) -> None:
        cache = model.new_cache(rows * -(-(context + steps + 1) // BLOCK_SIZE) * BLOCK_SIZE)
        (prompt,), first = prompts(1, context, model.config.vocab_size), cache.allocate()
        self.token, self.count, self.runner = (
            int(model.prefill(prompt, first, cache).argmax()),
            steps,
            DecodeSteps(model, cache),
        )
        self.sequences = [first, *(cache.allocate() for _ in range(rows - 1))]
        for other in self.sequences[1:]:
            cache.reserve(other, context)
            other.length = context
            cache.put_back(cache.take_out(first.blocks), other.blocks)

    def __call__(self) -> list[float]:
        """tok/s of each step but the first, which finds others' caches."""
        context, found = self.sequences[0].length, []
        run = self.runner.run([Row(sequence, self.token, self.count + 1) for sequence in self.sequences])
        for _ in range(self.count + 1):
            begin = time.perf_counter()
            next(run)
            found.append(len(self.sequences) / (time.perf_counter() - begin))
        run.close()
        for sequence in self.sequences:
            sequence.length = context
        return found[1:]


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


def peers(model: Llama, options: argparse.Namespace, work: Mix, ours: list[list[int]]) -> list[dict[str, Any]]:
    found = []
    for name in options.peers:
        if not find_spec(name):
            found.append({"engine": name, "output_tok/s": "not installed"})
        elif name == "vllm" and (model.device == "cpu" or options.kind != "float16"):
            found.append({"engine": name, "output_tok/s": "not run: needs a GPU and --kind float16"})
        else:
            run = vllm_row if name == "vllm" else transformers_row
            arguments = (options,) if name == "vllm" else (model, options)
            found.append(run(*arguments, work, ours))  # type: ignore[operator]
    return found


def bench(options: argparse.Namespace, device: str) -> tuple[list[dict[str, Any]], dict[str, object]]:
    shape = PRESETS[options.preset]
    model = random_model(shape, options.kind, device)
    work = mix(
        options.prompts, options.prompt_mean, options.output_mean, shape.positions, shape.vocabulary, options.seed
    )
    check_by_reference(model, shape.vocabulary)
    needed = sum(-(-(len(ids) + n) // 16) * 16 for ids, n in zip(work.prompts, work.outputs, strict=True))
    fits = free_bytes(device) // 2 // (cost.kv_bytes_per_token(model.config, model.dtype.itemsize))
    tokens = options.cache_tokens or max(shape.positions, min(needed, fits))
    engine = Timed(model, tokens)
    check(engine, work)
    limits = ceilings(device, model.dtype)
    steps = Steps(model, options.rows, options.context, options.steps)
    steps()
    before = steps()
    ids, ours = engine.row(f"baize {options.kind}", work, engine.together)
    after = steps()
    few = work.part(options.alone)
    apart, alone = engine.row(f"baize {options.kind}, one by one", few, engine.one_by_one)
    same(ids[: options.alone], apart)
    for row, rows, part in ((ours, 64, work), (alone, 1, few)):
        row["ceiling_tok/s"] = ceiling(model, options.kind, part, rows, limits)
        row["share"] = row["output_tok/s"] / row["ceiling_tok/s"]
    batch = median(before + after)
    ours |= {"of_batch": ours["output_tok/s"] / batch, "to_alone": ours["output_tok/s"] / alone["output_tok/s"]}
    ours["to_alone_ceiling"] = ours["ceiling_tok/s"] / alone["ceiling_tok/s"]
    facts = {f"batch_{options.rows}_tok/s": [median(before), median(after)], "cache_tokens": tokens, **limits}
    return [ours, alone, *peers(model, options, few, apart)], facts


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default="125m")
    options.add_argument("--kind", choices=KINDS, default="float16", help="weights")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument("--prompts", type=int, default=64)
    options.add_argument("--prompt_mean", type=int, default=64, help="tokens of a prompt on the average")
    options.add_argument("--output_mean", type=int, default=192, help="tokens after it on the average")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--cache_tokens", type=int, help="of the KV cache (default: all, as far as they fit)")
    options.add_argument("--alone", type=int, default=12, help="prompts that are run one by one too, and by peers")
    options.add_argument("--rows", type=int, default=32, help="of bench_decode's batch")
    options.add_argument("--context", type=int, default=128, help="of its rows")
    options.add_argument("--steps", type=int, default=48, help="of it, before and after")
    options.add_argument("--peers", nargs="*", choices=("transformers", "vllm"), default=(), help="without names: all")
    chosen = options.parse_args()
    positions = PRESETS[chosen.preset].positions
    chosen.context = min(chosen.context, positions - chosen.steps - 1)
    chosen.alone = min(chosen.alone, chosen.prompts)
    if min(chosen.prompts, chosen.alone, chosen.prompt_mean, chosen.output_mean, chosen.rows) < 1 or chosen.steps < 2:
        options.error("--prompts, --alone, --rows and the means must be at least 1, --steps at least 2")
    chosen.peers = ["transformers", "vllm"] if chosen.peers == [] else list(chosen.peers)
    device = backend.resolve_device(chosen.device)
    rows, facts = bench(chosen, device)
    told = {"preset": chosen.preset, "threads": torch.get_num_threads(), "seed": chosen.seed, **facts}
    report("throughput", rows, chosen, device, told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
