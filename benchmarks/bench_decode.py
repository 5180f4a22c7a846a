"""Decoding with random weights: time to the first token, gap between tokens, and share of the memory bandwidth.

A decode step must read every weight but the embedding once, and the cache of its context: the ceiling is those bytes
(baize_engine/model/cost.py) over the bandwidth measured in this run, by reading on the CPU and by copying on a GPU;
of_specified is over the card's specified bandwidth (benchmarks/cards.py). Ids are checked against the reference ops before
anything is timed.

The loop of `Engine` is timed, as a reader sees tokens arrive (benchmarks/arrivals.py). All rows of a step start together
after a context that only one of them computed; its first token is that of a prompt running alone. bench_throughput.py shows
how prompts and steps share the time. Rows "sampled" draw with temperature, top_k and top_p; the others are greedy. On the
CPU every engine has its own process and reads its model from a file (benchmarks/side_by_side.py), and `ratio` is our greedy
tok/s over the row's.

Under torchrun, on CPUs, the ranks are timed beside one process of as many threads (benchmarks/decode_ranks.py).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import abc
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import decode_ranks
import ik_llama
import launch_table
import side_by_side
import torch
from arrivals import GREEDY, SAMPLED, Rows, arrivals, engine_of, greedy, room
from baselines import compiled, decoded, theirs
from cards import card_of
from common import FIRST, GAP, Spread, device_name, latencies, parser
from engines import CHOSEN
from models import KINDS, Decoder, let_go, random_model, transformers_model
from reports import Report, table
from shapes import PRESETS

from baize_engine.backend import devices, memory
from baize_engine.backend.choose import reference_ops
from baize_engine.distributed.world import World
from baize_engine.generation.loop import MAX_ROWS, Loop
from baize_engine.generation.sequence import Sequence
from baize_engine.model import cost
from baize_engine.model.config import ModelConfig
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import PromptRunner, new_cache
from baize_engine.model.runner import Batch

CHECKED, PROMPT = 8, 24  # tokens compared, greedy and drawn ones; of the prompt before them
HALF_MARGIN = 5e-2  # logits closer than this may swap places between two orders of summation
SPARE = 2 << 30  # bytes left for activations and the system when it is asked what fits
MOST_STEPS = 1024  # on a GPU; peers on the CPU have room for CHOSEN


def prompts(batch: int, length: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(3, vocabulary, (batch, length), generator=generator).tolist()


class Ours:
    """The engine over a model and a cache of `tokens` tokens, which all that it is asked share."""

    def __init__(self, model: Llama, tokens: int) -> None:
        self.model, self.cache = model, new_cache(model, tokens)
        self.steps: Batch[Sequence] = Batch(model, self.cache, MAX_ROWS)
        self.loop = Loop(PromptRunner(model, self.cache), batch=self.steps)
        self.engine = engine_of(self.loop)

    def firsts(self, prompt: list[int], runs: int) -> list[float]:
        """Seconds to the first token of a prompt by itself; a run before is not counted."""
        found = []
        for _ in range(runs + 1):
            self.loop.pool.forget()
            found += arrivals(self.engine, [prompt], [greedy(1)]).firsts
        return found[1:]

    def rows(self, prompt: list[int], batch: int) -> Rows:
        return Rows(self.model, self.cache, prompt, batch, self.steps)


def check_by_reference(model: Llama, vocabulary: int) -> None:
    """SystemExit unless every id is among those that the reference ops would choose from after the same tokens.

    Greedily that is their best, or within HALF_MARGIN of it, and with SAMPLED their top_k best. And rows that step together
    after copies of a prompt must say what the prompt does by itself.
    """
    (prompt,) = prompts(1, PROMPT, vocabulary)
    ours = Ours(model, room(2, PROMPT, CHECKED))
    other = replace(model, ops=reference_ops(model.device))
    for params, best in ((GREEDY, 1), (SAMPLED, SAMPLED.top_k)):
        ids = arrivals(ours.engine, [prompt], [replace(params, seed=0, max_new_tokens=CHECKED)]).ids[0]
        decoder = Decoder(other, 64)
        rows = decoder.forward([prompt + ids[:-1]], [decoder.sequence()], all_logits=True)[PROMPT - 1 :]
        for step, (row, chosen) in enumerate(zip(rows, ids, strict=True)):
            if not float(row.topk(best).values[-1] - row[chosen]) < HALF_MARGIN:
                raise SystemExit(f"step {step}: the decoder chose {chosen}, the reference ops {int(row.argmax())}")
        if best == 1:
            together = ours.rows(prompt, 2)(CHECKED - 1)[0]
            if together != [[token, token] for token in ids[1:]]:
                raise SystemExit(f"two rows say {together} after copies of a prompt that says {ids[1:]} by itself")


class Bench:
    """The rows of one device; `speed` and `specified`: GB/s of its memory, measured and by the card's documents."""

    def __init__(
        self, report: Report, options: argparse.Namespace, device: str, speed: float, specified: float | None = None
    ) -> None:
        self.report, self.options, self.device, self.speed, self.specified = report, options, device, speed, specified
        self.shape = PRESETS[options.preset]

    def all(self) -> None:
        config = ModelConfig.from_dict(self.shape.config(self.shape.vocabulary, "float16"))
        for kind in self.options.kinds:
            with self.report.case(engine=f"baize {kind}"):
                needed, free = cost.weight_bytes(config, kind) + SPARE, free_bytes(self.device)
                if needed > free:
                    said = f"does not fit ({needed / 1e9:.0f} of {free / 1e9:.0f} GB)"
                    self.report.row({"engine": f"baize {kind}", "ms/token": said})
                else:
                    self._kind(kind)
            let_go(self.device)

    def _kind(self, kind: str) -> None:
        """Ours, and with `baselines` transformers, as it is and compiled, in this process."""
        options, report = self.options, self.report
        model, name = random_model(self.shape, kind, self.device), f"baize {kind}"
        check_by_reference(model, self.shape.vocabulary)
        other = None
        if options.baselines and find_spec("transformers"):
            with report.case(engine="transformers"):
                other = transformers_model(model, self.shape, model.dtype)
        places = [(batch, context) for batch in options.batches for context in options.contexts]
        caches = 2 if other is not None else 1
        reasons = {place: does_not_fit(model, *place, options.steps, caches) for place in places}
        rooms = [room(*place, options.steps + 1) for place in places if not reasons[place]]
        ours = Ours(model, max(rooms, default=1))
        firsts: dict[int, list[float]] = {}  # by context
        for batch, context in places:
            place = {"batch": batch, "context": context}
            if reason := reasons[batch, context]:
                report.row({"engine": name, **place, "ms/token": reason})
                continue
            many = prompts(batch, context, self.shape.vocabulary)
            with report.case(engine=name, **place):
                if context not in firsts:
                    firsts[context] = ours.firsts(many[0], options.runs)
                rows = ours.rows(many[0], batch)
                rows(options.steps + 1)  # compiles, and captures a graph for each bound of contexts
                for engine, params in ((name, GREEDY), (f"{name} sampled", SAMPLED)):
                    with report.case(engine=engine, **place):
                        _, seconds = rows(options.steps + 1, params)
                        self._show(engine, kind, model, place, firsts[context], seconds[1:])
            if other is not None:
                activation = str(model.dtype).removeprefix("torch.")
                for engine, run in (
                    (f"transformers {activation}", theirs),
                    (f"transformers compiled {activation}", compiled),
                ):
                    with report.case(engine=engine, **place):
                        times = decoded(partial(run, other), many, options.runs, options.steps)
                        self._show(engine, activation, model, place, *times)

    def _show(
        self,
        engine: str,
        kind: str,
        model: Llama,
        place: dict[str, int],
        firsts: abc.Sequence[float],
        gaps: abc.Sequence[float],
    ) -> None:
        activation, step = str(model.dtype).removeprefix("torch."), Spread.of(gaps).median
        middle = place["context"] + self.options.steps // 2  # what a step attends to on the average
        costs = cost.decode_step(model.config, kind, place["batch"], middle, activation)
        rate = sum(op.bytes for op in costs) / step / 1e9
        row = {
            "engine": engine, **place, **latencies(FIRST, firsts), **latencies(GAP, gaps), "tok/s": place["batch"] / step,
            "GB/s": rate, "share": rate / self.speed,
        }  # fmt: skip
        self.report.row(row if self.specified is None else {**row, "of_specified": rate / self.specified})


def gpu_rows(report: Report, options: argparse.Namespace, device: str) -> None:
    from gpu import ceilings

    report.facts["copy_GB/s"] = speed = ceilings(device)["copy_GB/s"]
    card = card_of(device_name(device))
    report.facts["specified_GB/s"] = card.bandwidth if card else "not known for this card"
    Bench(report, options, device, speed, card.bandwidth if card else None).all()


def free_bytes(device: str) -> int:
    """Memory of the device that nobody holds."""
    if device != "cpu":
        torch.cuda.empty_cache()
    return memory.free_bytes(device) or sys.maxsize


def does_not_fit(model: Llama, batch: int, context: int, steps: int, caches: int = 1) -> str | None:
    """What is said of a row whose `caches` caches, with some to spare, pass the free memory; the weights are there already."""
    cache = caches * KVCache.nbytes(model.config, room(batch, context, steps + 1), model.dtype)
    held = sum(weight.nbytes for weight in model.weights.values())
    free = free_bytes(model.device)
    if cache + SPARE <= free:
        return None
    return f"does not fit ({(held + cache + SPARE) / 1e9:.0f} of {(held + free) / 1e9:.0f} GB)"


def grids(rows: abc.Sequence[dict[str, Any]]) -> list[str]:
    """Tables of tok/s, contexts across and batches down, of each engine that has more than one row of them."""
    found: list[str] = []
    measured = [row for row in rows if isinstance(row.get("tok/s"), float)]
    for engine in dict.fromkeys(row["engine"] for row in measured):
        cells = {(row["batch"], row["context"]): row["tok/s"] for row in measured if row["engine"] == engine}
        if len(cells) > 1:
            batches, contexts = (sorted({place[n] for place in cells}) for n in (0, 1))
            found += ["", f"{engine}: tok/s by batch and context"]
            found += table([{"": batch, **{f"{c}": cells.get((batch, c), "") for c in contexts}} for batch in batches])
    return found


def main() -> int:
    world = World.of_environment()
    parallel = world is not None and world.size > 1
    if parallel and world.rank > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  until the process ends: rank 0 alone prints
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default="125m")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument(
        "--kinds",
        choices=KINDS,
        nargs="+",
        default=None,
        help="types of the weights (default: float16; on a GPU also int8 and int4)",
    )
    options.add_argument("--batches", type=int, nargs="+", default=None, help="default: 1 8 32 (GPU: 1 8 64)")
    options.add_argument(
        "--contexts", type=int, nargs="+", default=None, help="default: 128 (GPU: also 512, and 2048 less the steps)"
    )
    options.add_argument(
        "--steps", type=int, default=None, help="steps timed per row, on the CPU in each turn (default: 16, GPU: 100)"
    )
    options.add_argument("--runs", type=int, default=3, help="prompts timed to the first token, per context")
    options.add_argument("--rounds", type=int, default=3, help="CPU: turns of each engine per row")
    options.add_argument(
        "--baselines", action="store_true", help="transformers, and on a GPU its compiled step, on the same weights"
    )
    launch_table.add_option(options)
    side_by_side.add_options(options)
    ik_llama.add_option(options)
    chosen = options.parse_args()
    device, shape = devices.resolve_device(chosen.device), PRESETS[chosen.preset]
    on_gpu = device != "cpu"
    chosen.kinds = chosen.kinds or (["float16", "int8", "int4"] if on_gpu else ["float16"])
    chosen.batches = chosen.batches or ([1, 8, 64] if on_gpu else [1, 8, 32])
    chosen.contexts = chosen.contexts or ([128, 512, 2048] if on_gpu else [128])
    chosen.steps = (100 if on_gpu else 16) if chosen.steps is None else chosen.steps
    most = min(MOST_STEPS if on_gpu else CHOSEN - 1, shape.positions - 3)
    if not 2 <= chosen.steps <= most or min(chosen.runs, chosen.rounds, *chosen.contexts) < 1:
        options.error(f"--steps must be 2 to {most}, --runs, --rounds and --contexts at least 1")
    if not all(1 <= batch <= MAX_ROWS for batch in chosen.batches):
        options.error(f"--batches must be 1 to {MAX_ROWS}, which is what the engine runs at a time")
    longest = shape.positions - chosen.steps - 2  # the first token, and a step that is not counted
    chosen.contexts = list(dict.fromkeys(min(context, longest) for context in chosen.contexts))
    if parallel and (on_gpu or chosen.baselines or chosen.peers is not None or chosen.ik_llama):
        options.error(
            "under torchrun the ranks of a CPU are timed beside one process, without peers: wanted --device cpu"
        )
    chosen.peers = side_by_side.chosen_peers(chosen, ["transformers"] if chosen.baselines else [])
    if parallel and world.rank > 0:
        decode_ranks.follow(chosen)
    facts: dict[str, object] = {"preset": chosen.preset, "threads": torch.get_num_threads()}
    with (
        launch_table.in_use(chosen.tuned, device) as facts["tuned"],
        Report("decode", chosen, device, facts) as report,
    ):
        if on_gpu:
            with torch.cuda.device(device):
                gpu_rows(report, chosen, device)
        elif parallel:
            decode_ranks.decode_rows(report, chosen, world)
        else:
            side_by_side.decode_rows(report, chosen)
        print(*grids(report.rows), sep="\n", flush=True)
    return report.code


if __name__ == "__main__":
    sys.exit(main())
