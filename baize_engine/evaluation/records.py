"""Records of a task: OUT/<task>.jsonl, a line for each example, which only grows (batch/output.py), so that a run is resumed.

    {"name": ..., "group": ..., "input": DIGEST, "prompt_tokens": ..., "prompt_digest": ..., "outputs": [...],
     "finish_reasons": [...], "prediction": ..., "gold": ..., "measures": {...}}

"input" is a digest of all that determines the outputs, the model included; "prompt_digest" of the prompt's ids alone.
"logprobs" of the options stand in place of finish_reasons where one was chosen. "error" stands in place of the outputs where
there is no answer: with a verdict where the prompt is too long and counts as wrong, else without. A resumed run may judge
again; where a verdict is another one then, such as one that has become possible, the file is replaced. Knows no engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from baize_engine.batch.output import AnswerFile, digest, line
from baize_engine.evaluation.answers import Answer
from baize_engine.evaluation.files import place, records_name
from baize_engine.evaluation.questions import Question
from baize_engine.evaluation.task import Judged, Verdict

Record = dict[str, Any]
BEGIN = ("name", "group", "input")


class Records:
    """The open, locked file of a task's records. A context manager, which removes a new file that got no record.

    out: its folder. task: the task's name. questions: all of the task's, in order. run: describes the model. resume: goes on
    with a file that is there. Errors are those of AnswerFile.
    """

    def __init__(self, out: Path, task: str, questions: Sequence[Question], run: str, resume: bool) -> None:
        self._run = run
        heads = (self._head(question) for question in questions)
        self._file = AnswerFile(out / records_name(task), heads, resume, answers=("measures", "error"), option="--out")

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    @property
    def done(self) -> int:
        """The number of questions that have a record: the first ones."""
        return self._file.done

    def add(self, question: Question, answer: Answer, verdict: Verdict | None) -> None:
        """Appends a question's record. verdict: None where the example does not count."""
        rest: Record = {"prompt_tokens": len(question.ids), "prompt_digest": question.prompt_digest}
        if answer.error is not None:
            rest["error"] = answer.error
        else:
            rest["outputs"] = answer.outputs
            if answer.logprobs is None:
                rest["finish_reasons"] = answer.finish_reasons
            else:
                rest["logprobs"] = answer.logprobs
        if verdict is not None:
            rest |= _of_verdict(verdict)
        self._file.append(self._head(question), rest)

    def read(self) -> list[Record]:
        """The records so far."""
        with self._file.path.open(encoding="utf-8") as file:
            return [json.loads(each) for each in file]

    def judge_again(self, verdicts: Sequence[Verdict | None]) -> None:
        """Replaces the verdicts of the first records, where they are others; None leaves one as it is.

        Nothing may be added after that: the file is another one then.
        """
        found = self.read()
        changed = False
        for record, verdict in zip(found, verdicts, strict=False):
            if verdict is not None:
                new = json.loads(json.dumps(_of_verdict(verdict)))
                changed = changed or any(record[name] != value for name, value in new.items())
                record |= new
        if changed:
            place(self._file.path, b"".join(_line(record) for record in found))

    def _head(self, question: Question) -> str:
        """The beginning of a question's record, which tells it from those of other runs."""
        return _head(question.example.name, question.example.group, digest(question.content, self._run))


def _head(name: str, group: str, input: str) -> str:
    return json.dumps({"name": name, "group": group, "input": input})[:-1] + ", "


def _line(record: Record) -> bytes:
    """The line that `Records.read` made the record of."""
    begin = {name: record[name] for name in BEGIN}
    return line(_head(**begin), {name: value for name, value in record.items() if name not in BEGIN})


def _of_verdict(verdict: Verdict) -> Record:
    return {"prediction": verdict.prediction, "gold": verdict.gold, "measures": verdict.measures}


def judged(records: Iterable[Record]) -> list[Judged]:
    """What scores are made from: the records with a verdict."""
    return [Judged(one["name"], one["group"], one["measures"]) for one in records if "measures" in one]
