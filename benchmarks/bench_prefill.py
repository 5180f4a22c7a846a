"""Prefill with random weights: the time to run a prompt, and the share of the machine's peak of matrix products (MFU).

Operations are those of `cost.prefill`; the peak is torch's product of large square matrices of 16 bits (CPU: float32), measured
in this run; of_specified is over the card's specified peak of 16-bit products (benchmarks/cards.py). On a GPU the last
logits of a short prompt must equal those of the reference ops, which run it in pieces and are also a baseline. On the CPU every
engine has its own process (benchmarks/side_by_side.py says how it is checked), and `ratio` is our tok/s over the engine's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import ik_llama
import launch_table
import side_by_side
import torch
from cards import card_of
from common import Spread, device_name, measure, parser
from models import KINDS, Decoder, let_go, random_model, transformers_model
from reports import Report
from roofline import matmul_peak, synchronize
from shapes import PRESETS, Shape

from baize_engine.backend import devices
from baize_engine.backend.choose import reference_ops
from baize_engine.backend.memory import free_bytes
from baize_engine.model import cost
from baize_engine.model.llama import Llama

CHECKED, PIECE = 80, 16  # tokens of the checked prompt, more than the kernels for few rows take; of an oracle's call
# |logits - oracle| / |oracle|: activations are rounded to their type some times a layer, and in other places by each
BOUNDS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def prompt(length: int, vocabulary: int) -> list[int]:
    return torch.randint(3, vocabulary, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def reference_model(model: Llama) -> Llama:
    """The same weights with the ops of kernels/reference.py."""
    return replace(model, ops=reference_ops(model.device))


def check(name: str, logits: Callable[[list[int]], torch.Tensor], model: Llama) -> None:
    """SystemExit where the last logits of a short prompt are not those of the reference ops, which run it in pieces."""
    ids, oracle = prompt(CHECKED, model.config.vocab_size), reference_model(model)
    sequence = (decoder := Decoder(oracle, CHECKED)).sequence()
    for begin in range(0, len(ids), PIECE):
        wanted = decoder.forward([ids[begin : begin + PIECE]], [sequence])
    error = float((logits(ids).float() - wanted).norm() / wanted.norm())
    if not error <= BOUNDS[model.dtype]:  # also where it is not a number
        raise SystemExit(f"{name}: the last logits are {error:.3g} off the reference's, wanted {BOUNDS[model.dtype]:g}")


def ours(decoder: Decoder, ids: list[int]) -> torch.Tensor:
    sequence = decoder.sequence()
    try:
        logits = decoder.prefill(ids, sequence)
        synchronize(decoder.model.device)
    finally:
        decoder.pool.free(sequence)
    return logits


@torch.inference_mode()
def theirs(model: Any, device: str, ids: list[int]) -> torch.Tensor:
    """The last logits, by the parts that every version of transformers has; the cache is filled and dropped."""
    hidden = model.model(torch.tensor([ids], device=device), use_cache=True)[0]
    logits = model.lm_head(hidden[:, -1])
    synchronize(device)
    return logits


def baseline(model: Llama, shape: Shape) -> tuple[Any, str]:
    """transformers' model, checked, or None; and what a report says of it."""
    if not find_spec("transformers"):
        return None, "not installed"
    needed, free = 2 * shape.parameters * model.dtype.itemsize, free_bytes(model.device)  # its own, and ours for them
    if free is not None and needed > free:
        return None, f"does not fit: wants {needed / 1e9:.1f} GB of {free / 1e9:.1f}"
    made = transformers_model(model, shape, model.dtype)
    check("transformers", partial(theirs, made, model.device), model)
    return made, "measured"


def row(engine: str, tokens: int, time: Spread, flops: int, peak: float) -> dict[str, Any]:
    speed, ms = flops / time.median / 1e12, {"ms": time.median * 1e3, "p20": time.p20 * 1e3, "p80": time.p80 * 1e3}
    rates = {"tok/s": tokens / time.median, "TFLOP/s": speed, "MFU": speed / peak}
    return {"engine": engine, "tokens": tokens, **ms, **rates}


def bench(report: Report, options: argparse.Namespace, kind: str, device: str) -> None:
    """Ours, the reference ops and transformers in this process, for a GPU."""
    shape = PRESETS[options.preset]
    model = random_model(shape, kind, device)
    decoder = Decoder(model, max(*options.tokens, CHECKED))
    check("baize", partial(ours, decoder), model)
    activation = str(model.dtype).removeprefix("torch.")
    card = card_of(device_name(device)) if model.dtype in (torch.float16, torch.bfloat16) else None
    report.facts["matmul_TFLOP/s"] = peak = matmul_peak(device, model.dtype)
    engines: dict[str, Callable[[list[int]], torch.Tensor]] = {f"baize {kind}": partial(ours, decoder)}
    if any(row.name != "torch" for row in model.ops.rows.values()):
        engines[f"torch {kind}"] = partial(ours, Decoder(reference_model(model), cache=decoder.cache))
    if options.baselines:
        with report.case(engine=f"transformers {activation}"):
            other, report.facts["transformers"] = baseline(model, shape)
            if other is not None:
                engines[f"transformers {activation}"] = partial(theirs, other, device)
    for tokens in options.tokens:
        flops = sum(op.flops for op in cost.prefill(model.config, tokens, kind, activation))
        for name, run in engines.items():
            with report.case(engine=name, tokens=tokens):
                time = measure(partial(run, prompt(tokens, shape.vocabulary)), options.runs)
                found = row(name, tokens, time, flops, peak)
                report.row({**found, "of_specified": found["TFLOP/s"] / card.half_tflops} if card else found)


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default="125m")
    options.add_argument("--kinds", choices=KINDS, nargs="+", default=["float16"], help="weights")
    options.add_argument(
        "--tokens", type=int, nargs="+", default=None, help="tokens of a prompt (default: 128 512; on a GPU also 2048)"
    )
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument("--runs", type=int, default=5, help="prompts timed per row")
    options.add_argument(
        "--baselines", action="store_true", help="also transformers, if it is installed and fits in memory"
    )
    launch_table.add_option(options)
    side_by_side.add_options(options)
    ik_llama.add_option(options)
    chosen = options.parse_args()
    device, most = devices.resolve_device(chosen.device), PRESETS[chosen.preset].positions
    most -= device == "cpu"  # the engine there makes the token after the prompt
    chosen.tokens = chosen.tokens or [
        min(tokens, most) for tokens in ([128, 512] if device == "cpu" else [128, 512, 2048])
    ]
    if min(chosen.tokens) < 1 or max(chosen.tokens) > most or chosen.runs < 1:
        options.error(f"--tokens must be 1 to {most} for {chosen.preset}, and --runs at least 1")
    chosen.peers = side_by_side.chosen_peers(chosen, ["transformers"] if chosen.baselines else [])
    facts: dict[str, object] = {"preset": chosen.preset, "threads": torch.get_num_threads()}
    with (
        launch_table.in_use(chosen.tuned, device) as facts["tuned"],
        Report("prefill", chosen, device, facts) as report,
    ):
        if device == "cpu":
            side_by_side.prefill_rows(report, chosen)
        for kind in chosen.kinds if device != "cpu" else ():
            with report.case(engine=f"baize {kind}"):
                bench(report, chosen, kind, device)
            let_go(device)
    return report.code


if __name__ == "__main__":
    sys.exit(main())
