"""Decoding with random weights: time to the first token, milliseconds a token, and the share of the memory's speed.

A decode step must read every weight but the embedding once: the ceiling is those bytes over the read bandwidth measured in
this run. The greedy ids are compared with transformers' on the same weights before anything is timed; transformers is also
the baseline. The decoder's ops are those that `baize info` shows for the device.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from common import Spread, memory_bandwidth, parser, report
from shapes import PRESETS, Shape

from baize_engine import backend
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import Llama

CHECKED = 8  # greedy tokens compared with transformers
MARGIN = 1e-3  # logits closer than this may swap places between two orders of summation


def random_weights(shape: Shape, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(1 << 22, generator=generator) * 0.02

    def take(dims: tuple[int, ...]) -> torch.Tensor:
        count = torch.Size(dims).numel()
        start = int(torch.randint(block.numel(), (1,), generator=generator))
        return block.roll(-start).repeat(-(-count // block.numel()))[:count].view(dims).to(dtype).to(device)

    return {
        name: take(dims) + 1 if name.endswith("norm.weight") else take(dims) for name, dims in shape.tensors().items()
    }


def prompts(batch: int, length: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(3, vocabulary, (batch, length), generator=generator).tolist()


def ours(model: Llama, many: list[list[int]], steps: int) -> tuple[list[list[int]], float, list[float]]:
    """(ids of each prompt, seconds to the first tokens, seconds of each further step)."""
    cache = model.new_cache(sum(-(-(len(ids) + steps) // 16) * 16 for ids in many))
    sequences = [cache.allocate() for _ in many]
    begin = time.perf_counter()
    logits = torch.cat([model.prefill(ids, s, cache) for ids, s in zip(many, sequences, strict=True)])
    tokens = logits.argmax(-1).tolist()
    first = time.perf_counter() - begin
    made, seconds = [[token] for token in tokens], []
    for _ in range(steps - 1):
        begin = time.perf_counter()
        tokens = model.forward([[token] for token in tokens], sequences, cache).argmax(-1).tolist()
        seconds.append(time.perf_counter() - begin)
        for ids, token in zip(made, tokens, strict=True):
            ids.append(token)
    return made, first, seconds


def theirs(
    model: Any, many: list[list[int]], steps: int
) -> tuple[list[list[int]], float, list[float], list[torch.Tensor]]:
    """The same by transformers' model and its cache; the logits of each step besides."""
    begin = time.perf_counter()
    with torch.inference_mode():
        out = model(torch.tensor(many), use_cache=True)
        tokens = out.logits[:, -1].argmax(-1)
        first = time.perf_counter() - begin
        made, seconds, logits = [[token] for token in tokens.tolist()], [], [out.logits[:, -1]]
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


def transformers_model(shape: Shape, weights: dict[str, torch.Tensor]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    kept = {key: value for key, value in shape.config(shape.vocabulary, "float32").items() if key != "torch_dtype"}
    config: Any = LlamaConfig
    model = LlamaForCausalLM(config(**kept)).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model


def check(model: Llama, baseline: Any, vocabulary: int) -> None:
    """Greedy ids must be transformers' up to the first step, never the very first, whose best logits are within MARGIN."""
    many = prompts(1, 24, vocabulary)
    mine, _, _ = ours(model, many, CHECKED)
    wanted, _, _, logits = theirs(baseline, many, CHECKED)
    for step, row in enumerate(logits):
        best, second = row[0].topk(2).values
        if best - second < MARGIN and step:
            return
        if mine[0][step] != wanted[0][step]:
            raise SystemExit(f"step {step}: the decoder chose {mine[0][step]}, transformers {wanted[0][step]}")


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


def bench(options: argparse.Namespace) -> tuple[list[dict[str, Any]], float]:
    shape = PRESETS[options.preset]
    dtype = getattr(torch, options.dtype)
    weights = random_weights(shape, dtype, "cpu")
    config = ModelConfig.from_dict(shape.config(shape.vocabulary, options.dtype))
    model = Llama(config, weights, backend.ops("cpu"), "cpu")
    baseline = transformers_model(shape, weights) if options.baseline and find_spec("transformers") else None
    if baseline is not None:
        check(model, baseline, shape.vocabulary)
    speed = memory_bandwidth(torch.get_num_threads())["read"]
    rows = []
    for batch in options.batches:
        for context in options.contexts:
            many = prompts(batch, context, shape.vocabulary)
            times = timed(partial(ours, model, many), options.runs, options.steps)
            size = shape.decode_bytes(dtype.itemsize)
            rows.append(row(f"baize {options.dtype}", batch, context, times, size, speed))
            if baseline is not None:
                times = timed(partial(theirs, baseline, many), options.runs, options.steps)
                rows.append(row("transformers float32", batch, context, times, shape.decode_bytes(4), speed))
    return rows, speed


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default="125m")
    options.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    options.add_argument("--contexts", type=int, nargs="+", default=[128, 512])
    options.add_argument("--steps", type=int, default=16, help="tokens decoded for each row")
    options.add_argument("--runs", type=int, default=3, help="prompts timed to the first token for each row")
    options.add_argument("--no_baseline", dest="baseline", action="store_false", help="leave transformers out")
    chosen = options.parse_args()
    if chosen.steps < 2 or chosen.runs < 1:
        options.error("--steps must be at least 2 (the first token counts apart) and --runs at least 1")
    rows, speed = bench(chosen)
    baseline = "measured" if any(r["engine"].startswith("transformers") for r in rows) else "not measured"
    facts = {"preset": chosen.preset, "threads": torch.get_num_threads(), "read_GB/s": speed, "baseline": baseline}
    report("decode", rows, chosen, facts=facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
