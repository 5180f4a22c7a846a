"""The figures of docs/evaluation.md; docs/performance.md has the table of times."""

from __future__ import annotations

import re
from collections.abc import Iterator

from shapes import PRESETS

from baize_engine.evaluation.card import ROWS
from figures.performance_engine import ZEN5, prompt
from figures.performance_serving import TASKS
from figures.results import note, report, row
from figures.written import three

SPEED = "zen5-2core-eval-125m-float32"
STATED = {
    "time (3 seconds), memory (512 MiB)": "limits of a program's process (CodeRunner)",
    "a model of 125M parameters": "the preset's size",
}


# Tasks by the start of their names, and what they measure
MEASURES = {
    "mmlu": "accuracy",
    "gsm": "exact match",
    "bbh": "exact match, mean of the tasks",
    "tydiqa": "F1, mean of the languages",
    "humaneval": "pass@1 and pass@10",
    "alpaca_farm": "win rate",
}


def card_scores() -> Iterator[str]:
    """The model card's scores, which nobody measured here, as the code's table has them."""
    assert all(any(row.name.startswith(task) for task in MEASURES) for row in ROWS)
    for task, measure in MEASURES.items():
        figures = " ".join(row.figures for row in ROWS if row.name.startswith(task))
        yield f"| {measure} | {', '.join(re.findall(r'[0-9]+[.][0-9]', figures))} |"


def claims() -> Iterator[str]:
    yield from card_scores()
    ratios = [row(SPEED, task=task, engine="transformers")["ratio"] for task in TASKS]
    yield f"it was {min(ratios):.1f} to {max(ratios):.1f} times as fast as a loop over transformers"
    assert not any(each.get("differ", 0) for each in report(SPEED)["rows"])  # "with the same answers", says the page
    left = row(f"{ZEN5}-prefix", what="counted, all")["computed"]
    speed = prompt(ZEN5, "int8", 512)["tok/s"]
    assert 9.5 < PRESETS["13b"].parameters / PRESETS["1b"].parameters < 10.5  # "a tenth"
    yield f"5-shot MMLU leaves {left / 1e6:.2f} million tokens to compute"
    hours = left / (speed / 10) / 3600
    yield f"as the {three(speed)} that 1.26B parameters read on two cores of Zen 5, that alone is {hours:.0f} hours"
    mmlu, bbh = (note("evaluation", name)["values"] for name in ("long mmlu prompts", "long bbh prompts"))
    yield f"{2 * mmlu['prompts']:,} prompts of MMLU"
    yield f"{2 * bbh['prompts']:,} of BBH"
    yield (
        f"{mmlu['too_long']} of the {mmlu['prompts']:,} prompts of `mmlu_5shot` have {mmlu['their_tokens']} tokens, and lose "
        f"another example where the model has {mmlu['positions']} positions"
    )
    yield f"The {bbh['too_long']} prompts of geometric_shapes with reasoning are too long"
