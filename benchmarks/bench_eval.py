"""Evaluation: MMLU after 5 examples (scored), GSM8K and BBH with reasoning (generated), against what people evaluate with.

A model of random weights in a folder, read by each engine: ours runs `evaluate`, whose seconds are those from the examples to
the records, prompts made and encoded; transformers and lm-evaluation-harness's `hf` model, where it is installed, get ids, in
padded batches. They take turns, ours before and after each other, which runs with the fastest of --batches, found on some of
the prompts. `ratio`: its seconds over the mean of ours around it. `computed`: tokens of prompts, padding included.
Answers must be the same: where one differs (`differ`), the two ids' logits, by transformers on that prompt alone, must be
nearly the same (`gap`, in standard deviations of the logits). A peer computes in float32 on a CPU, whatever our weights are.
Examples are the first of evenly chosen groups as far as they fit the model with an answer; how many do not is in the facts.
The data are under BAIZE_SHARED/assets/eval, the tokenizer is BAIZE_SHARED's; without them nothing is measured, and the report
says why.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import parser
from eval_peers import Asked, Peer, Transformers
from model_files import FLOATS, Store
from models import KINDS
from reports import Report
from shapes import PRESETS
from side_by_side import MARGINS

from baize_engine import Completion, Engine
from baize_engine.backend import devices
from baize_engine.evaluation import card, evaluate
from baize_engine.evaluation.options import EvaluationOptions
from baize_engine.evaluation.task import Choice, Encoder, Example, Judged, Request, Score, Task, Verdict
from baize_engine.generation.usage import Usage
from baize_engine.loaded_model import LoadedModel
from baize_engine.loading import load
from baize_engine.options import EngineOptions
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer

SHARED = Path(os.environ.get("BAIZE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
DATA, TOKENIZER = "assets/eval", "assets/tokenizer_32000.model"
TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    "add_bos_token": True, "add_eos_token": False, "legacy": False,
}  # fmt: skip
GAPS = {**MARGINS, "float32": 1e-3}  # the same weights: only the order of summation differs
TRIED = 2  # prompts, at least, on which a batch size is tried


@dataclass(frozen=True)
class Work:
    """How much of a task runs by default: so many groups, and examples of each."""

    task: str
    groups: int
    examples: int


WORK = (Work("mmlu_5shot", 2, 32), Work("gsm_cot", 1, 16), Work("bbh_cot", 2, 8))


class Part(Task[Any]):
    """Some examples of a task, whose answers have at most so many tokens."""

    def __init__(self, task: Task[Any], examples: list[Example], new_tokens: int) -> None:
        self._task, self._examples, self._new_tokens = task, examples, new_tokens
        self.name = task.name

    def examples(self, data: Path, seed: int) -> list[Example]:
        return self._examples

    def request(self, example: Example, chat: bool, encoder: Encoder) -> Request:
        return self.capped(self._task.request(example, chat, encoder))

    def capped(self, request: Request) -> Request:
        if isinstance(request, Choice):
            return request
        return replace(request, params=replace(request.params, max_new_tokens=self._new_tokens))

    def judge(self, example: Example, outputs: Sequence[str]) -> Verdict:
        return self._task.judge(example, outputs)

    def scores(self, judged: Sequence[Judged]) -> list[Score]:
        return self._task.scores(judged)


class Recorded(Engine):
    """An engine that keeps the ids of the texts it generates."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model)
        self.said: list[list[int]] = []

    def completions(self, *prompts: Any, **options: Any) -> Generator[list[Completion], None, None]:
        with closing(super().completions(*prompts, **options)) as found:
            for samples in found:
                self.said.append(samples[0].token_ids)
                yield samples


@dataclass(frozen=True)
class Run:
    """A task by our engine: what was said to each question."""

    seconds: float
    said: list[list[int]]
    usage: Usage


class Ours:
    """Our engine over a model's folder; each run begins with nothing cached."""

    def __init__(self, folder: Path, device: str) -> None:
        self._model = load(folder, EngineOptions(device=device))
        self.engine = Recorded(self._model)

    def run(self, part: Part, asked: Sequence[Asked]) -> Run:
        self._model.loop.pool.forget()
        self.engine.said.clear()
        with tempfile.TemporaryDirectory() as out:
            begin, before = time.perf_counter(), self.engine.usage
            (result,) = evaluate(self.engine, [part], out, Path(out, "out"))
            seconds, usage = time.perf_counter() - begin, self.engine.usage - before
            if result.failed or result.examples != len(asked):
                raise SystemExit(
                    f"{part.name}: {result.failed} of {result.examples} examples failed, wanted {len(asked)}"
                )
            records = Path(out, "out", f"{part.name}.jsonl").read_text().splitlines()
        if asked[0].candidates:
            chosen = [json.loads(line)["outputs"][0] for line in records]
            said = [[each.candidates[each.options.index(one)]] for each, one in zip(asked, chosen, strict=True)]
        else:
            said = [each.cut(ids) for each, ids in zip(asked, self.engine.said, strict=True)]
        return Run(seconds, said, usage)


def evenly(names: Sequence[str], count: int) -> list[str]:
    step = len(names) / min(count, len(names))
    return [names[int(n * step)] for n in range(min(count, len(names)))]


def asked_of(engine: Engine, request: Request) -> Asked:
    """The question as `evaluate` asks it."""
    tokenizer = engine.tokenizer
    assert tokenizer is not None  # it is in the folder
    ids = tokenizer.encode(request.prompt, True)
    if isinstance(request, Choice):
        options = [tokenizer.encode(option, False)[0] for option in request.options]
        return Asked(request, ids, tuple(options), frozenset())
    return Asked(request, ids, (), frozenset((*engine.eos_token_ids, *request.params.stop_token_ids)))


def chosen_of(
    engine: Engine, task: Task[Any], work: Work, data: Path, new_tokens: int
) -> tuple[Part, list[Asked], int]:
    """The part of a task that is run, its questions, and how many examples before the last of a group do not fit the model."""
    groups: dict[str, list[Example]] = {}
    for example in task.examples(data, EvaluationOptions().seed):
        groups.setdefault(example.group, []).append(example)
    whole, tokenizer = Part(task, [], new_tokens), engine.tokenizer
    assert tokenizer is not None
    kept: list[Example] = []
    questions: list[Asked] = []
    too_long = 0
    for group in evenly(list(groups), work.groups):
        most = len(kept) + work.examples
        for example in groups[group]:
            one = asked_of(engine, whole.request(example, True, tokenizer))
            if len(one.ids) + one.new_tokens > engine.max_model_len:
                too_long += 1
                continue
            kept.append(example)
            questions.append(one)
            if len(kept) == most:
                break
    return Part(task, kept, new_tokens), questions, too_long


def fastest(peer: Peer, asked: Sequence[Asked], batches: Sequence[int]) -> dict[int, float]:
    """{batch size: seconds a prompt}, on the first prompts, the fastest size first."""
    peer.answers(asked[:1], 1)
    found = {}
    for batch in batches:
        few = asked[: max(batch, TRIED)]
        begin = time.perf_counter()
        peer.answers(few, batch)
        found[batch] = (time.perf_counter() - begin) / len(few)
    return dict(sorted(found.items(), key=lambda each: each[1]))


def gap(judge: Transformers, asked: Asked, ours: list[int], theirs: list[int]) -> float:
    """How far apart the logits of the first ids that differ are, in standard deviations; 0.0 where all are the same."""
    place = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        return 0.0
    logits = judge.logits([*asked.ids, *ours[:place]])
    return float((logits[ours[place]] - logits[theirs[place]]).abs() / logits.std())


def row(task: str, engine: str, batch: Any, asked: Sequence[Asked], computed: int, said: Sequence[list[int]],
        seconds: float, base: float) -> dict[str, Any]:  # fmt: skip
    return {
        "task": task, "engine": engine, "batch": batch, "examples": len(asked),
        "prompt_tokens": sum(len(each.ids) for each in asked), "computed": computed,
        "new_tokens": 0 if asked[0].candidates else sum(map(len, said)), "seconds": seconds,
        "examples/s": len(asked) / seconds, "ratio": seconds / base,
    }  # fmt: skip


def peer_row(report: Report, peer: Peer, judge: Transformers, part: Part, asked: Sequence[Asked], ours: Ours,
             runs: list[Run], options: argparse.Namespace) -> None:  # fmt: skip
    """Runs the peer, and ours after it."""
    tried = fastest(peer, asked, options.batches)
    report.facts["tried"].setdefault(part.name, {})[peer.name] = tried
    batch, before = next(iter(tried)), peer.computed
    begin = time.perf_counter()
    said = peer.answers(asked, batch)
    seconds, computed = time.perf_counter() - begin, peer.computed - before
    runs.append(ours.run(part, asked))
    if runs[-1].said != runs[0].said:
        raise SystemExit(f"{part.name}: two runs of ours differ")
    pairs = zip(asked, runs[0].said, said, strict=True)
    apart = [gap(judge, one, mine, theirs) for one, mine, theirs in pairs if mine != theirs]
    if apart and not max(apart) <= GAPS[options.kind]:  # also where it is not a number
        raise SystemExit(
            f"{part.name}: {peer.name} answers {len(apart)} of {len(asked)} questions otherwise, where the logits are "
            f"{max(apart):.3g} standard deviations apart, wanted at most {GAPS[options.kind]:g}"
        )
    base = mean(run.seconds for run in runs[-2:])
    report.row({
        **row(part.name, peer.name, batch, asked, computed, said, seconds, base),
        "differ": len(apart), "gap": max(apart, default=0.0),
    })  # fmt: skip


def bench(report: Report, options: argparse.Namespace, device: str, folder: Path) -> None:
    store = Store(folder, options.preset)
    path, read = store.ours(options.kind), store.ours(options.kind if options.kind in FLOATS else "float16")
    for each in {path, read}:
        (each / "tokenizer.model").write_bytes((SHARED / TOKENIZER).read_bytes())
        (each / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    dtype = torch.float32 if device == "cpu" else getattr(torch, options.kind if options.kind in FLOATS else "float16")
    ours, judge = Ours(path, device), Transformers(read, device, dtype)
    peers: list[Peer] = [judge]
    if find_spec("lm_eval"):
        from eval_harness import Harness

        peers.append(Harness(read, device, dtype))
    else:
        report.row({"engine": "lm_eval hf", "seconds": "not installed"})
    report.facts |= {"too_long": {}, "tried": {}, "runs": {}}
    for work in options.work:
        with report.case(task=work.task):
            (task,) = card.tasks(work.task, EvaluationOptions())
            part, asked, report.facts["too_long"][work.task] = chosen_of(
                ours.engine, task, work, SHARED / DATA, options.new_tokens
            )
            if not asked:
                raise SystemExit("no example fits the model")
            ours.run(part, asked)  # memory and plans are there once they are used, as the peers' are by then
            runs = [ours.run(part, asked)]
            for peer in peers:
                with report.case(task=work.task, engine=peer.name):
                    peer_row(report, peer, judge, part, asked, ours, runs, options)
            report.facts["runs"][work.task] = [run.seconds for run in runs]
            seconds, computed = mean(run.seconds for run in runs), runs[0].usage.computed_tokens
            named = f"baize {options.kind}"
            report.row(row(work.task, named, "", asked, computed, runs[0].said, seconds, seconds))


def skipped(options: argparse.Namespace) -> str | None:
    """Why nothing is measured, if so."""
    absent = [name for name in (DATA, TOKENIZER) if not (SHARED / name).exists()]
    if absent:
        return f"{', '.join(absent)} absent: set BAIZE_SHARED"
    if find_spec("transformers") is None:
        return "transformers is not installed"
    pieces = SentencePieceTokenizer((SHARED / TOKENIZER).read_bytes()).vocab_size
    return "the preset's vocabulary is too small" if PRESETS[options.preset].vocabulary < pieces else None


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--preset", choices=PRESETS, default="125m")
    options.add_argument("--kind", choices=KINDS, default="float32", help="our weights")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument("--tasks", nargs="+", choices=[work.task for work in WORK], default=[w.task for w in WORK])
    options.add_argument("--groups", type=int, help="subjects of MMLU and tasks of BBH (default: 2)")
    options.add_argument("--questions", type=int, help="of each group (default: MMLU 32, GSM 16, BBH 8)")
    options.add_argument("--new_tokens", type=int, default=64, help="the most of an answer: random weights never stop")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8], help="that peers try")
    chosen = options.parse_args()
    if min(chosen.groups or 1, chosen.questions or 1, chosen.new_tokens, *chosen.batches) < 1:
        options.error("--groups, --questions, --new_tokens and --batches must be at least 1")
    chosen.work = [
        replace(work, groups=chosen.groups or work.groups, examples=chosen.questions or work.examples)
        for work in WORK
        if work.task in chosen.tasks
    ]
    device = devices.resolve_device(chosen.device)
    if reason := skipped(chosen):
        with Report("eval", chosen, device) as report:
            report.row({"task": ", ".join(chosen.tasks), "examples": f"skipped: {reason}"})
        return 0
    facts = {"preset": chosen.preset, "kind": chosen.kind, "threads": torch.get_num_threads()}
    with Report("eval", chosen, device, facts) as report, tempfile.TemporaryDirectory() as folder:
        bench(report, chosen, device, Path(folder))
    return report.code


if __name__ == "__main__":
    sys.exit(main())
