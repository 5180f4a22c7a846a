"""HumanEval: Python functions to complete, judged by running their tests ("Codex-Eval" in the model card's table).

Settings: open-instruct's eval/codex_humaneval/run_eval.py (commit 7c5ee77a1). There a stop sequence had to come as certain
tokens; here, as in the paper, as text. Knows no sandbox: who wants verdicts gives a `Runner`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

from baize_engine.evaluation.data import json_lines, locate, read_text, texts
from baize_engine.evaluation.pass_at_k import pass_at_k
from baize_engine.evaluation.task import (
    Encoder,
    Example,
    Generation,
    Judged,
    Score,
    Task,
    Verdict,
    chat_prompt,
    mean_score,
)
from baize_engine.generation.params import SamplingParams

SOURCE = "https://github.com/openai/human-eval/raw/master/data/HumanEval.jsonl.gz"
FILE = "HumanEval.jsonl.gz"
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
SAMPLES = 20


class Outcome(Protocol):
    """What running a program came to. detail: "passed", or why not, such as "timed out"."""

    @property
    def passed(self) -> bool: ...

    @property
    def detail(self) -> str: ...


class Runner(Protocol):
    """Runs programs that a model wrote, where they do no harm."""

    def run(self, programs: Sequence[str]) -> Sequence[Outcome]:
        """The outcome of each program, in their order; a program passes if it ends by itself, without an exception."""
        ...


@dataclass(frozen=True)
class Column:
    """A figure of the card: pass@k at a temperature. Its problems are the group of that name."""

    k: int
    temperature: float
    card: float

    @property
    def group(self) -> str:
        return f"T={self.temperature}"

    @property
    def measure(self) -> str:
        return f"pass@{self.k}"


COLUMNS = (Column(k=1, temperature=0.1, card=14.5), Column(k=10, temperature=0.8, card=27.3))


@dataclass(frozen=True)
class Problem(Example):
    """A problem at one temperature; the fields from `task_id` on are the file's. seed: of its samples."""

    temperature: float
    seed: int
    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str

    def program(self, completion: str) -> str:
        """A program that passes if the completion is right, as in HumanEval's own harness."""
        return f"{self.prompt}{completion}\n{self.test}\ncheck({self.entry_point})"


class HumanEval(Task[Problem]):
    """runner: judges the completions; without one they are recorded only. as_chat: ask in the chat format (see `request`)."""

    name = "humaneval"

    def __init__(self, runner: Runner | None = None, as_chat: bool = False) -> None:
        self.runner = runner
        self.as_chat = as_chat

    def examples(self, data: Path, seed: int) -> list[Problem]:
        path = locate(data, (FILE, f"codex_humaneval/{FILE}", FILE.removesuffix(".gz")), SOURCE)
        problems = []
        for line, record in json_lines(read_text(path), str(path)):
            fields = texts(
                record, ("task_id", "prompt", "entry_point", "canonical_solution", "test"), f"{path}, line {line}"
            )
            for column in COLUMNS:
                name = f"{fields[0]} {column.group}"
                drawn = Random(f"{seed} {name}").getrandbits(32)  # not `seed`: problems are to be independent
                problems.append(Problem(name, column.group, column.temperature, drawn, *fields))
        return problems

    def request(self, example: Problem, chat: bool, encoder: Encoder) -> Generation:
        """The problem itself, even if `chat`: so the card's figures were made. If `as_chat` and `chat`, the chat variant."""
        params = SamplingParams(
            max_new_tokens=512,
            temperature=example.temperature,
            top_p=0.95,
            top_k=50,  # the default of transformers, which the original left as it was
            n=SAMPLES,
            stop=STOPS,
            seed=example.seed,
        )
        prompt = example.prompt
        if chat and self.as_chat:
            asked = f"Complete the following python function.\n\n\n{prompt}"
            prompt = chat_prompt(asked, f"Here is the completed function:\n\n\n{prompt}")
        return Generation(prompt, params)

    def judge(self, example: Problem, outputs: Sequence[str]) -> Verdict:
        """prediction: records as HumanEval's harness reads them, and each one's "result" if there is a runner."""
        records = [{"task_id": example.task_id, "completion": output} for output in outputs]
        if self.runner is None:
            return Verdict(records, example.canonical_solution)
        outcomes = self.runner.run([example.program(output) for output in outputs])
        for record, outcome in zip(records, outcomes, strict=True):
            record["result"] = outcome.detail
        correct = sum(outcome.passed for outcome in outcomes)
        measures = {
            each.measure: pass_at_k(len(outputs), correct, each.k) for each in COLUMNS if each.group == example.group
        }
        return Verdict(records, example.canonical_solution, measures)

    def files(self, examples: Sequence[Problem], verdicts: Sequence[Verdict]) -> dict[str, str]:
        """The completions at each temperature, as HumanEval's own harness reads them."""
        lines: dict[str, list[str]] = {}
        for example, verdict in zip(examples, verdicts, strict=True):
            name = f"humaneval_completions_T{example.temperature}.jsonl"
            lines.setdefault(name, []).extend(json.dumps(record) + "\n" for record in verdict.prediction)
        return {name: "".join(found) for name, found in lines.items()}

    def scores(self, judged: Sequence[Judged]) -> list[Score]:
        """pass@1 at T = 0.1 and pass@10 at T = 0.8; the errors are over problems."""
        return [
            mean_score(f"{column.measure}, {column.group}", judged, column.measure, column.card) for column in COLUMNS
        ]
