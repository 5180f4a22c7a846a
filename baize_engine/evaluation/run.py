"""Runs tasks on an engine: all prompts are made and checked first; then answers are judged and recorded as they come.

Knows neither prompts nor metrics: those are the tasks'.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from baize_engine import __version__
from baize_engine.checkpoint.os_errors import writing
from baize_engine.engine import Engine
from baize_engine.evaluation import card
from baize_engine.evaluation.answers import Answer, answers
from baize_engine.evaluation.files import place
from baize_engine.evaluation.options import EvaluationOptions
from baize_engine.evaluation.questions import Question, questions
from baize_engine.evaluation.records import Record, Records, judged
from baize_engine.evaluation.report import TaskResult, check_out, write_results
from baize_engine.evaluation.selection import Selection, select
from baize_engine.evaluation.task import Judged, Score, Task, Verdict
from baize_engine.generation.usage import Since
from baize_engine.progress import Progress


def evaluate(
    engine: Engine,
    tasks: str | Sequence[str | Task[Any]],
    data: str | Path,
    out: str | Path,
    *,
    format: str = "chat",
    add_bos: bool = True,
    limit: int | None = None,
    too_long: str = "wrong",
    subjects: Sequence[str] | None = None,
    seed: int = 42,
    resume: bool = False,
    progress: bool = False,
    allow_code_execution: bool = False,
    annotations: str | Path | None = None,
    model: dict[str, Any] | None = None,
) -> list[TaskResult]:
    """Runs tasks of the model card, or others, and returns a result for each, in their order.

    Wrong arguments, data and prompts are found before the model runs.

    Arguments:
        engine: the model.
        tasks: names of tasks (`baize eval --help` lists them), "card" for all of them, or Task objects.
        data: the folder with the tasks' data, as downloaded.
        out: the folder for results.json, which is written after each task, and the records, TASK.jsonl; made if absent.
        format: "chat", the prompts of the model card; "raw", those that the same scripts made for base models.
        add_bos: prompts begin with the BOS token, as they did for the model card.
        limit: asks only the first so many examples of each group.
        too_long: what becomes of an example whose prompt leaves the model no position for an answer: "wrong": it is not asked
            and counts as wrong, unless all examples of its task are too long; "refuse": an error.
        subjects: asks only these groups: subjects of MMLU, tasks of BBH, languages of TydiQA.
        seed: for choosing the examples of tasks that use a sample of them, and for sampling from the model.
        resume: continues from the records in `out`, which must be of the same model, prompts and version, and judges those that
            were not judged.
        progress: shows a bar for each task if stderr is a terminal.
        allow_code_execution: runs the programs that the model writes, each in a process with limited memory and time.
        annotations: the file of a judge's preferences, for AlpacaFarm.
        model: JSON that identifies the model, such as `batch.run.describe_model` returns; only a run of the same model is
            resumed. Without it, models are not told apart.

    Raises:
        RequestError: an option is wrong, or the prompt of an example is too long; the message names its task.
        DataError: data are missing or damaged.
        OutputError: `out` holds results of another run, or cannot be written.
    """
    options = EvaluationOptions(
        format,
        add_bos,
        limit,
        subjects,
        too_long,
        seed,
        allow_code_execution,
        None if annotations is None else str(annotations),
    )
    selections = select(card.tasks(tasks, options), Path(data), options)
    return run(engine, selections, Path(out), options, resume, progress, model)


def run(
    engine: Engine,
    selections: Sequence[Selection],
    out: Path,
    options: EvaluationOptions,
    resume: bool = False,
    progress: bool = False,
    model: dict[str, Any] | None = None,
) -> list[TaskResult]:
    """`evaluate` with the examples that `select` returned."""
    facts = {"version": __version__, "model": model or {}}
    description = json.dumps(facts, sort_keys=True)
    check_out(out, [one.task.name for one in selections], resume)
    asked = [(one.task, _questions(engine, one, options, progress)) for one in selections]
    with writing(out, "be made"):
        out.mkdir(parents=True, exist_ok=True)
    results: list[TaskResult] = []
    with ExitStack() as stack:
        begun = []
        for task, its_questions in asked:
            opened = Records(out, task.name, its_questions, description, resume)
            begun.append(_Begun(task, its_questions, stack.enter_context(opened)))
        for one in begun:
            results.append(one.finished(engine, out, progress))
            write_results(out, {**facts, "options": asdict(options)}, results)
    return results


def _questions(engine: Engine, selection: Selection, options: EvaluationOptions, progress: bool) -> list[Question]:
    with Progress(len(selection.examples), "prompt", progress, f"{selection.task.name}, prompts") as bar:
        return questions(engine, selection, options, bar.add)


@dataclass(frozen=True)
class _Begun:
    """A task that is run: its questions, and their records so far."""

    task: Task[Any]
    questions: list[Question]
    records: Records

    def finished(self, engine: Engine, out: Path, progress: bool) -> TaskResult:
        """Asks the questions that have no record, writes the task's files, and returns what came out."""
        resumed, since, begin = self.records.done, Since(engine), time.perf_counter()
        self._ask(engine, progress)
        self._judge_again(resumed, progress)
        seconds, usage = time.perf_counter() - begin, since.usage
        found = self.records.read()
        self._write_files(out, found)
        scored = judged(found)
        scores = self.task.scores(scored) if scored else []
        return TaskResult(
            self.task.name,
            scores,
            len(found),
            self._by_group(scored),
            failed=len(found) - len(scored),
            too_long=sum("error" in record and "measures" in record for record in found),
            resumed=resumed,
            seconds=seconds,
            usage=usage,
        )

    def _judge_again(self, resumed: int, progress: bool) -> None:
        """Judges the records of earlier runs where that may give another verdict. One without measures changes nothing."""
        verdicts: list[Verdict | None] = []
        with Progress(resumed, "verdict", progress and resumed > 0, f"{self.task.name}, verdicts") as bar:
            for question, record in zip(self.questions[:resumed], self.records.read()[:resumed], strict=True):
                settled = "outputs" not in record or (record["measures"] and not self.task.verdicts_change)
                verdict = None if settled else self.task.judge(question.example, record["outputs"])
                verdicts.append(verdict if verdict is not None and verdict.measures else None)
                bar.add(1)
        self.records.judge_again(verdicts)

    def _ask(self, engine: Engine, progress: bool) -> None:
        """Asks the questions that have no record, and records each answer with its verdict."""
        left = self.questions[self.records.done :]
        with (
            Progress(
                len(self.questions),
                "example",
                progress,
                self.task.name,
                done=self.records.done,
                note=Since(engine).speculation,
            ) as bar,
            closing(answers(engine, left)) as found,
        ):
            for question, answer in zip(left, found, strict=True):
                self.records.add(question, answer, self._verdict(question, answer))
                bar.add(1, answer.tokens)

    def _verdict(self, question: Question, answer: Answer) -> Verdict | None:
        """None where the answer is an error. What is too long to be asked is wrong, whatever the task makes of silence."""
        if question.too_long is not None:
            silence = self.task.judge(question.example, [""] * question.params.n)
            return replace(silence, measures=dict.fromkeys(silence.measures, 0.0))
        return None if answer.error is not None else self.task.judge(question.example, answer.outputs)

    def _write_files(self, out: Path, found: Sequence[Record]) -> None:
        good = [pair for pair in zip(self.questions, found, strict=True) if "measures" in pair[1]]
        examples = [question.example for question, _ in good]
        verdicts = [Verdict(record["prediction"], record["gold"], record["measures"]) for _, record in good]
        for name, text in self.task.files(examples, verdicts).items():
            place(out / name, text.encode("utf-8", "backslashreplace"))

    def _by_group(self, scored: Sequence[Judged]) -> dict[str, list[Score]]:
        """The scores of each group, where there are several; the card has none of them."""
        groups: dict[str, list[Judged]] = {}
        for one in scored:
            groups.setdefault(one.group, []).append(one)
        if len(groups) < 2:
            return {}
        return {
            name: [replace(score, card=None) for score in self.task.scores(ones) if score.count]
            for name, ones in groups.items()
        }
