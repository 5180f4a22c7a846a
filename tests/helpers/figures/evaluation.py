"""The figures of docs/evaluation.md."""

from __future__ import annotations

from collections.abc import Iterator

from figures.results import commit, note, report, row

SPEED = "zen5-2core-eval-125m-float32"
TASKS = {"mmlu_5shot": "`mmlu_5shot`", "gsm_cot": "`gsm_cot`", "bbh_cot": "`bbh_cot`"}
STATED = {
    "time (3 seconds), memory (512 MiB)": "limits of a program's process (CodeRunner)",
    "| AlpacaFarm: instructions, compared with text-davinci-003 by a judge | win rate | 28.7 |": "the model card's figure",
    "lm-evaluation-harness 0.4.13": "a version",
    "a model of 125M parameters": "the preset's size",
    "fastest batch of 1, 4 and 8": "the batches that were tried",
}


def claims() -> Iterator[str]:
    yield f"(commit {commit(SPEED)}, `benchmarks/bench_eval.py`)"
    if not any(each.get("differ", 0) for each in report(SPEED)["rows"]):
        yield "No answer differs."
    for task, shown in TASKS.items():
        ours = row(SPEED, task=task, engine="baize float32")
        plain, harness = (row(SPEED, task=task, engine=engine)["ratio"] for engine in ("transformers", "lm_eval hf"))
        new = ours["new_tokens"] // ours["examples"]
        yield (
            f"| {shown}{f', {new} new tokens each' if new else ''} | {ours['examples']} | {ours['seconds']:.2f} "
            f"| {plain:.1f} times as fast | {harness:.1f} times as fast "
            f"| {ours['prompt_tokens']:,} | {ours['computed']:,} |"
        )
    mmlu, bbh = (note("evaluation", name)["values"] for name in ("long mmlu prompts", "long bbh prompts"))
    yield (
        f"{mmlu['too_long']} of the {mmlu['prompts']:,} prompts of `mmlu_5shot` have {mmlu['their_tokens']} tokens, and lose "
        f"another example where the model has {mmlu['positions']} positions"
    )
    yield f"The {bbh['too_long']} prompts of geometric_shapes with reasoning are too long"
