"""Decoding with random weights: time to the first token, milliseconds a token, and the share of the memory's speed.

A decode step must read every weight but the embedding once, and the cache of its context: the ceiling is those bytes
(baize_engine/model/cost.py) over the bandwidth measured in this run, by reading on the CPU and by copying on a GPU. Ids are
checked against the reference ops before anything is timed. The decoder's ops are those that `baize info` shows for the device.
On the CPU every engine has its own process and reads its model from a file (benchmarks/side_by_side.py), and `ratio` is our
tok/s over the engine's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import side_by_side
import torch
from common import Spread, parser, report
from engines import CHOSEN
from models import KINDS, random_model, transformers_model
from shapes import PRESETS

from baize_engine import backend, memory
from baize_engine.kernels import reference
from baize_engine.model import cost
from baize_engine.model.config import ModelConfig
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.steps import DecodeSteps, Row

CHECKED = 8  # greedy tokens compared
HALF_MARGIN = 5e-2  # logits closer than this may swap places between two orders of summation
SPARE = 2 << 30  # bytes left for activations and the system when it is asked what fits


def prompts(batch: int, length: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(3, vocabulary, (batch, length), generator=generator).tolist()


class Ours:
    """The decoder on `many` prompts of one length: call it with the number of tokens to make."""

    def __init__(self, model: Llama, many: list[list[int]], steps: int) -> None:
        self.model, self.many = model, many
        self.cache = model.new_cache(sum(-(-(len(ids) + steps) // 16) * 16 for ids in many))
        self.steps = DecodeSteps(model, self.cache)

    def __call__(self, steps: int) -> tuple[list[list[int]], float, list[float]]:
        """(ids of each prompt, seconds to the first tokens, seconds of each further step)."""
        model, cache = self.model, self.cache
        sequences = [cache.allocate() for _ in self.many]
        begin = time.perf_counter()
        logits = torch.cat([model.prefill(ids, s, cache) for ids, s in zip(self.many, sequences, strict=True)])
        tokens = logits.argmax(-1).tolist()
        first = time.perf_counter() - begin
        made, seconds = [[token] for token in tokens], []
        run = self.steps.run([Row(s, token, steps - 1) for s, token in zip(sequences, tokens, strict=True)])
        while len(seconds) < steps - 1:
            begin = time.perf_counter()
            tokens = next(run)
            seconds.append(time.perf_counter() - begin)
            for ids, token in zip(made, tokens, strict=True):
                ids.append(token)
        run.close()
        for sequence in sequences:
            cache.free(sequence)
        return made, first, seconds


def theirs(
    model: Any, many: list[list[int]], steps: int
) -> tuple[list[list[int]], float, list[float], list[torch.Tensor]]:
    """The same by transformers' model and its cache; the logits of each step besides."""
    begin = time.perf_counter()
    with torch.inference_mode():
        out = model(torch.tensor(many, device=model.device), use_cache=True)
        tokens = out.logits[:, -1].argmax(-1)
        made, logits = [[token] for token in tokens.tolist()], [out.logits[:, -1]]
        first, seconds = time.perf_counter() - begin, []
        for _ in range(steps - 1):
            begin = time.perf_counter()
            out = model(tokens[:, None], past_key_values=out.past_key_values, use_cache=True)
            tokens = out.logits[:, -1].argmax(-1)
            made_now = tokens.tolist()
            seconds.append(time.perf_counter() - begin)
            logits.append(out.logits[:, -1])
            for ids, token in zip(made, made_now, strict=True):
                ids.append(token)
    return made, first, seconds, logits


def compiled(model: Any, many: list[list[int]], steps: int) -> tuple[None, float, list[float]]:
    """transformers' model, its step compiled by torch (reduce-overhead: CUDA graphs) over a cache of fixed size."""
    from transformers import StaticCache

    device, length = model.device, len(many[0])
    static: Any = StaticCache
    past = static(config=model.config, max_cache_len=length + steps)
    step = torch.compile(model.forward, mode="reduce-overhead", fullgraph=False)
    with torch.inference_mode():
        begin = time.perf_counter()
        places = torch.arange(length, device=device)
        out = model(torch.tensor(many, device=device), past_key_values=past, cache_position=places, use_cache=True)
        tokens = out.logits[:, -1].argmax(-1)
        tokens.tolist()
        first, seconds = time.perf_counter() - begin, []
        for number in range(steps - 1):
            begin = time.perf_counter()
            place = torch.tensor([length + number], device=device)
            out = step(tokens[:, None], past_key_values=past, cache_position=place, use_cache=True)
            tokens = out.logits[:, -1].argmax(-1).clone()
            tokens.tolist()
            seconds.append(time.perf_counter() - begin)
    return None, first, seconds


def check_by_reference(model: Llama, vocabulary: int) -> None:
    """Every greedy id must be the reference ops' best after the same tokens, or within HALF_MARGIN of it."""
    many = prompts(1, 24, vocabulary)
    (ids,), _, _ = Ours(model, many, CHECKED)(CHECKED)
    other = Llama(model.config, model.weights, reference, model.device, model.dtype)
    cache = other.new_cache(64)
    rows = other.forward([many[0] + ids[:-1]], [cache.allocate()], cache, all_logits=True)[23:]
    for step, (row, chosen) in enumerate(zip(rows, ids, strict=True)):
        if not float(row.max() - row[chosen]) < HALF_MARGIN:
            raise SystemExit(f"step {step}: the decoder chose {chosen}, the reference ops {int(row.argmax())}")


def timed(decode: Callable[[int], tuple[Any, ...]], runs: int, steps: int) -> tuple[Spread, Spread]:
    """Spreads of the time to the first token, over `runs` prompts, and of a step; a short run first is not counted."""
    decode(2)
    many = [decode(steps), *(decode(1) for _ in range(runs - 1))]
    return Spread.of(run[1] for run in many), Spread.of(many[0][2])


def row(name: str, batch: int, context: int, times: tuple[Spread, Spread], nbytes: int, speed: float) -> dict[str, Any]:
    first, step = times
    rate = nbytes / step.median / 1e9
    return {
        "engine": name, "batch": batch, "context": context,
        "ttft_ms": first.median * 1e3, "ttft_p20": first.p20 * 1e3, "ttft_p80": first.p80 * 1e3,
        "ms/token": step.median * 1e3, "p20": step.p20 * 1e3, "p80": step.p80 * 1e3,
        "tok/s": batch / step.median, "GB/s": rate, "share": rate / speed,
    }  # fmt: skip


def free_bytes(device: str) -> int:
    """Memory of the device that nobody holds."""
    if device != "cpu":
        torch.cuda.empty_cache()
    return memory.free_bytes(device) or sys.maxsize


def does_not_fit(model: Llama, batch: int, context: int, steps: int) -> str | None:
    """What is said of a row whose cache, with some to spare, passes the free memory; the weights are there already."""
    cache = KVCache.nbytes(model.config, batch * (context + steps + 16), model.dtype)
    held = sum(weight.nbytes for weight in model.weights.values())
    free = free_bytes(model.device)
    if cache + SPARE <= free:
        return None
    return f"does not fit ({(held + cache + SPARE) / 1e9:.0f} of {(held + free) / 1e9:.0f} GB)"


def bench_kind(options: argparse.Namespace, kind: str, device: str, speed: float) -> list[dict[str, Any]]:
    """On a GPU: ours, and with `baselines` transformers, as it is and compiled, in this process."""
    shape = PRESETS[options.preset]
    model = random_model(shape, kind, device)
    other = transformers_model(model, shape, model.dtype) if options.baselines and find_spec("transformers") else None
    check_by_reference(model, shape.vocabulary)
    activation = str(model.dtype).removeprefix("torch.")
    rows: list[dict[str, Any]] = []
    for batch in options.batches:
        for context in options.contexts:
            many = prompts(batch, context, shape.vocabulary)
            if reason := does_not_fit(model, batch, context, options.steps):
                rows.append({"engine": f"baize {kind}", "batch": batch, "context": context, "ms/token": reason})
                continue
            moved = sum(op.bytes for op in cost.decode_step(model.config, kind, batch, context, activation))
            times = timed(Ours(model, many, options.steps), options.runs, options.steps)
            rows.append(row(f"baize {kind}", batch, context, times, moved, speed))
            if other is None:
                continue
            whole = sum(op.bytes for op in cost.decode_step(model.config, activation, batch, context, activation))
            times = timed(partial(theirs, other, many), options.runs, options.steps)
            rows.append(row(f"transformers {activation}", batch, context, times, whole, speed))
            times = timed(partial(compiled, other, many), 1, options.steps)
            rows.append(row(f"transformers compiled {activation}", batch, context, times, whole, speed))
    return rows


def gpu_rows(options: argparse.Namespace, device: str, speed: float) -> list[dict[str, Any]]:
    shape = PRESETS[options.preset]
    config = ModelConfig.from_dict(shape.config(shape.vocabulary, "float16"))
    rows: list[dict[str, Any]] = []
    for kind in options.kinds:
        needed, free = cost.weight_bytes(config, kind) + SPARE, free_bytes(device)
        if needed > free:
            said = f"does not fit ({needed / 1e9:.0f} of {free / 1e9:.0f} GB)"
            rows.append({"engine": f"baize {kind}", "ms/token": said})
            continue
        rows += bench_kind(options, kind, device, speed)
    return rows


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default="125m")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument(
        "--kinds", choices=KINDS, nargs="+", default=None, help="weights; float16 (GPU: and int8, int4)"
    )
    options.add_argument("--batches", type=int, nargs="+", default=None, help="1 8 32 (GPU: 1 8 64)")
    options.add_argument(
        "--contexts", type=int, nargs="+", default=None, help="128 (GPU: and 512, 2048 less the steps)"
    )
    options.add_argument("--steps", type=int, default=16, help="tokens decoded for each row, on the CPU in each turn")
    options.add_argument("--runs", type=int, default=3, help="prompts timed to the first token for each row")
    options.add_argument("--rounds", type=int, default=3, help="CPU: turns of each engine for each row")
    options.add_argument(
        "--baselines", action="store_true", help="transformers, and on a GPU its compiled step, on the same weights"
    )
    side_by_side.add_options(options)
    chosen = options.parse_args()
    if not 2 <= chosen.steps < CHOSEN or min(chosen.runs, chosen.rounds) < 1:
        options.error(f"--steps must be 2 to {CHOSEN - 1} (the first counts apart), --runs and --rounds at least 1")
    device, shape = backend.resolve_device(chosen.device), PRESETS[chosen.preset]
    on_gpu = device != "cpu"
    chosen.kinds = chosen.kinds or (["float16", "int8", "int4"] if on_gpu else ["float16"])
    chosen.batches = chosen.batches or ([1, 8, 64] if on_gpu else [1, 8, 32])
    chosen.contexts = chosen.contexts or ([128, 512, 2048] if on_gpu else [128])
    chosen.contexts = [min(context, shape.positions - chosen.steps - 1) for context in chosen.contexts]
    chosen.peers = side_by_side.chosen_peers(chosen, ["transformers"] if chosen.baselines else [])
    facts: dict[str, object] = {"preset": chosen.preset, "threads": torch.get_num_threads()}
    if on_gpu:
        from gpu import ceilings

        facts["copy_GB/s"] = speed = float(ceilings(device)["copy_GB/s"])
        rows = gpu_rows(chosen, device, speed)
    else:
        rows = side_by_side.decode_rows(chosen)
    report("decode", rows, chosen, device, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
