"""Few-shot evaluation: the 5-shot prompts of MMLU, every subject's questions after its five examples, with and without sharing.

A model of random weights runs the first questions of each subject and chooses one token after each ("generated"), or gives the
log-probabilities of four candidates ("scored"), once in a cache that shares equal beginnings of prompts and once in one that
does not, subject by subject in turns; the results must be equal bit for bit. Sharing, a subject's prompts are one call, whose
rests may run together on a CPU; without, each is a call by itself.
`tokens_ratio` is prompt tokens over tokens computed, both counted; `speedup` is the ratio of the times, `share` the speedup
over `tokens_ratio`. `best_ratio`: the ratio if prefixes were shared by single tokens instead of blocks. The last row counts
all questions of all subjects through the block pool alone.
The data are Hendrycks's files (mmlu_csv.tar.gz) under BAIZE_SHARED/assets/eval, the tokenizer is BAIZE_SHARED's; without them
nothing is measured and the report says why.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import abc
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from bench_decode import check_by_reference
from common import parser
from models import KINDS, random_model
from reports import Report
from roofline import synchronize
from shapes import PRESETS

from baize_engine import Engine, SamplingParams
from baize_engine.backend import devices
from baize_engine.evaluation.mmlu import Mmlu, prompt
from baize_engine.generation.block_pool import BlockPool
from baize_engine.generation.loop import Loop
from baize_engine.generation.sequence import Sequence
from baize_engine.loaded_model import LoadedModel
from baize_engine.model.kv_cache import BLOCK_SIZE
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import PromptPiece, PromptRunner, new_cache
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer

SHARED = Path(os.environ.get("BAIZE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
DATA, TOKENIZER = "assets/eval/mmlu_csv.tar.gz", "assets/tokenizer_32000.model"
SHOTS = 5
ONE_TOKEN = SamplingParams(max_new_tokens=1, ignore_eos=True)
CANDIDATES = [5, 29, 319, 350]  # ids that are scored, as those of the four letters are


def prompts(data: Path, tokenizer: SentencePieceTokenizer) -> dict[str, list[list[int]]]:
    """{subject: its prompts}, each with all its examples, whether it fits the model or not."""
    found: dict[str, list[list[int]]] = {}
    for example in Mmlu(SHOTS).examples(data, seed=0):
        found.setdefault(example.group, []).append(tokenizer.encode(prompt(example, SHOTS, chat=False)))
    return found


def common(a: list[int], b: list[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def least(many: list[list[int]]) -> int:
    """Tokens that must be computed if any beginning that came before is shared, to the token; the last one always is."""
    ordered = sorted(many)
    shared = sum(min(common(a, b), len(b) - 1) for a, b in pairwise(ordered))
    return sum(map(len, many)) - shared


def counted(many: list[list[int]], chunk: int, longest: int) -> int:
    """Tokens that are computed where the pool shares by `chunk`, one prompt after another."""
    pool, computed = BlockPool(2 * -(-longest // BLOCK_SIZE), BLOCK_SIZE, chunk), 0
    for ids in many:
        sequence = Sequence(ids, ONE_TOKEN, 1)
        pool.begin(sequence)
        computed += len(ids) - sequence.num_cached
        pool.reserve(sequence, len(ids) - sequence.num_cached)
        sequence.num_cached = len(ids)
        pool.remember(sequence)
        pool.free(sequence)
    return computed


class Counting(PromptRunner):
    """A runner that counts the tokens of prompts that it computes."""

    computed = 0

    def run(self, pieces: abc.Sequence[PromptPiece]) -> None:
        self.computed += sum(len(piece.ids) for piece in pieces)
        super().run(pieces)


class Runner:
    """An engine over `model` that shares beginnings or not, and counts the tokens of prompts that it computes.

    `scores`: it gives the log-probabilities of CANDIDATES after each prompt, and else one token.
    """

    def __init__(self, model: Llama, shares: bool, scores: bool) -> None:
        cache = new_cache(model, 2 * model.config.max_position_embeddings)
        for part in (cache.keys, cache.values):  # a CPU's memory is there once it is written
            part.zero_()
        self.shares, self.scores, self.prompts = shares, scores, Counting(model, cache)
        self.loop = Loop(self.prompts)
        config = model.config
        self.engine = Engine(LoadedModel(self.loop, config.vocab_size, config.max_position_embeddings, ()))
        self.device, self.seconds = model.device, 0.0

    def __call__(self, many: list[list[int]]) -> list[Any]:
        """What is said after each prompt."""
        synchronize(self.device)
        begin, done = time.perf_counter(), []
        for part in [many] if self.shares else [[ids] for ids in many]:
            if self.scores:
                done += self.engine.next_token_logprobs(part, CANDIDATES)
            else:
                done += [each.token_ids for each in self.engine.generate(part, ONE_TOKEN)]
            if not self.shares:
                self.loop.pool.forget()
        self.seconds += time.perf_counter() - begin
        return done


def row(what: str, prompts_: int, tokens: int, computed: int, best: int) -> dict[str, Any]:
    return {
        "what": what, "prompts": prompts_, "prompt_tokens": tokens, "computed": computed,
        "tokens_ratio": tokens / computed, "best_ratio": tokens / best, "of_best": best / computed,
    }  # fmt: skip


def measured(model: Llama, many: dict[str, list[list[int]]], scores: bool) -> dict[str, Any]:
    """The row of the prompts that were run."""
    plain, sharing = Runner(model, False, scores), Runner(model, True, scores)
    warm = next(iter(many.values()))[:2]
    for runner in (plain, sharing):
        runner([[*warm[0][1:], 5], warm[0][1:]])  # other tokens at every place: nothing of it is shared later
        runner.seconds, runner.prompts.computed = 0.0, 0
    for subject, one in many.items():
        if (wanted := plain(one)) != (got := sharing(one)):
            number = next(n for n, (a, b) in enumerate(zip(wanted, got, strict=True)) if a != b)
            raise SystemExit(
                f"{subject}, prompt {number}: {got[number]} with a shared beginning, {wanted[number]} without"
            )
    tokens = sum(len(ids) for one in many.values() for ids in one)
    if plain.prompts.computed != tokens:
        raise SystemExit(f"{plain.prompts.computed} tokens were computed without sharing, wanted all {tokens}")
    made = row(
        "scored" if scores else "generated",
        sum(map(len, many.values())),
        tokens,
        sharing.prompts.computed,
        sum(map(least, many.values())),
    )
    made |= {"plain_s": plain.seconds, "sharing_s": sharing.seconds, "speedup": plain.seconds / sharing.seconds}
    return {**made, "share": made["speedup"] / made["tokens_ratio"]}


def bench(report: Report, chosen: argparse.Namespace, device: str) -> None:
    shape = PRESETS[chosen.preset]
    asked = prompts((SHARED / DATA).parent, SentencePieceTokenizer((SHARED / TOKENIZER).read_bytes()))
    every = {name: [ids for ids in many if len(ids) < shape.positions] for name, many in asked.items()}
    step = len(every) / min(chosen.subjects or len(every), len(every))
    names = [list(every)[int(n * step)] for n in range(round(len(every) / step))]
    model = random_model(shape, chosen.kind, device)
    chunk = new_cache(model, BLOCK_SIZE).chunk
    report.facts |= {"subjects": len(names), "chunk": chunk}
    with report.case(what="check"):
        check_by_reference(model, shape.vocabulary)
    for what, scores in (("generated", False), ("scored", True)):
        with report.case(what=what):
            report.row(measured(model, {name: every[name][: chosen.questions] for name in names}, scores))
    with report.case(what="counted, all"):
        whole = row(
            "counted, all", sum(map(len, every.values())), sum(len(ids) for one in every.values() for ids in one),
            sum(counted(one, chunk, shape.positions) for one in every.values()), sum(map(least, every.values())),
        )  # fmt: skip
        report.facts["too_long"] = sum(map(len, asked.values())) - whole["prompts"]
        report.row(whole)


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default="125m")
    options.add_argument("--kind", choices=KINDS, default="float16", help="weights")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument("--questions", type=int, default=4, help="questions to run per subject")
    options.add_argument(
        "--subjects", type=int, default=None, help="number of subjects to run, evenly chosen (default: all)"
    )
    chosen = options.parse_args()
    if chosen.questions < 2 or (chosen.subjects or 1) < 1:
        options.error("--questions must be at least 2, --subjects at least 1")
    device, shape = devices.resolve_device(chosen.device), PRESETS[chosen.preset]
    absent = [name for name in (DATA, TOKENIZER) if not (SHARED / name).exists()]
    if absent or shape.vocabulary < 32000:
        reason = f"{', '.join(absent)} absent: set BAIZE_SHARED" if absent else "the preset's vocabulary is too small"
        with Report("prefix", chosen, device) as report:
            report.row({"what": "5-shot MMLU", "prompts": f"skipped: {reason}"})
        return 0
    with Report("prefix", chosen, device, {"preset": chosen.preset, "threads": torch.get_num_threads()}) as report:
        bench(report, chosen, device)
    return report.code


if __name__ == "__main__":
    sys.exit(main())
