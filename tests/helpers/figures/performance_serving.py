"""Figures of docs/performance.md: speculation, many prompts, evaluation, and ranks on CPUs."""

from __future__ import annotations

from collections.abc import Iterator

from figures.results import commit, note, report, row
from figures.written import cells, percent, three

KINDS = ("float16", "int8", "int4")
PROMPTS = ("code_edit", "quoting_summary", "json_echo", "free_story")


def speculated(kind: str, how: str, prompts: str) -> dict:
    name = f"zen5-2core-speculate-1b{'-int4' if kind == 'int4' else ''}"
    return row(name, kind=kind, what=how, prompts=prompts)


def speedups(name: str) -> list[float]:
    return [each["speedup"] for each in report(name)["rows"] if isinstance(each.get("speedup"), float)]


def tiny_steps() -> list[float]:
    """Milliseconds of a step of one row of the models of a million parameters and fewer."""
    rows = report("zen5-2core-speculate-small")["rows"]
    return [each["ms"] for each in rows if each["what"] == "step" and each["rows"] == 1]


def speculation() -> Iterator[str]:
    for how, kinds in (("ngram", KINDS), ("self-int4", KINDS[:2])):
        for kind in kinds:
            found = [speculated(kind, how, prompts) for prompts in PROMPTS]
            yield cells(f"`{how}`, {kind}", *(f"{each['speedup']:.1f} ({each['tokens/step']:.1f})" for each in found))
    yield f"commit {commit('zen5-2core-speculate-1b')}; int4: {commit('zen5-2core-speculate-1b-int4')}"
    for prompts, words in (("quoting_summary", "summaries that quote"), ("code_edit", "edits of code")):
        found = [
            row("zen5-2core-speculate-125m", kind="float16", what="ngram", prompts=prompts, batch=batch)["speedup"]
            for batch in (1, 4, 16)
        ]
        yield cells(words, *(f"{each:.2f}" for each in found))
    small = speedups("zen5-2core-speculate-small")
    steps = tiny_steps()
    assert f"{min(steps):.1f}" == f"{max(steps):.1f}"
    yield f"whose steps take {max(steps):.1f} ms"
    yield f"up to {max(small):.1f} times as fast and up to {percent(1 - min(small))} slower"
    large = [*speedups("zen5-2core-speculate-loss-1b"), *speedups("zen5-2core-speculate-loss-1b-int")]
    medium = speedups("zen5-2core-speculate-loss-125m")
    yield f"{min(large):.2f} to {max(large):.2f} times plain speed with 1.26B parameters"
    yield f"{min(medium):.2f} to {max(medium):.2f} with 125M"
    for kind in KINDS:
        name = f"zen5-2core-rows-1b-{kind}"
        of_one = [row(name, rows=rows)["of_one"] for rows in (2, 4, 8)]
        read = sum(report(name)["verify_read_GB/s"][kind]) / 2
        yield cells(kind, *(f"{each:.2f}" for each in of_one), f"{read:.0f} GB/s")
        assert commit(name) == "9e912a6"
    values = note("performance", "four rows, slower memory")["values"]
    yield f"While it read {values['read_GB_s']} GB/s, four rows of float16 took {values['of_one']:.2f}"


def prompts() -> Iterator[str]:
    together = row("zen5-2core-throughput", engine="baize float16")
    facts = report("zen5-2core-throughput")
    yield f"{together['prompts']} prompts with a mix of lengths"
    yield f"{three(together['output_tok/s'])} output tokens a second"
    yield f"{facts['of_batch']:.2f} of the rate of steps at batch 32 in the same run"
    yield (
        f"{facts['to_alone, output_tok/s']:.1f} times the rate of one prompt after another, where the ceilings allow "
        f"{facts['to_alone, ceiling_tok/s']:.1f}"
    )
    generated, scored, counted = report("zen5-2core-prefix")["rows"]
    yield f"{generated['prompts']} prompts of 5-shot MMLU"
    yield (
        f"{generated['speedup']:.2f} times as fast with shared prefixes, where {generated['tokens_ratio']:.2f} times fewer "
        f"tokens are computed: {generated['share']:.2f} of that ratio"
    )
    yield f"scored instead of generated, {scored['speedup']:.2f} times ({scored['share']:.2f})"
    yield (
        f"all {counted['prompts']:,} prompts that fit 2048 tokens it would be {counted['tokens_ratio']:.1f} times fewer, and "
        f"{counted['best_ratio']:.1f} if single tokens were shared"
    )
    shares = [each["share"] for each in report("zen5-2core-loop")["rows"]]
    yield f"{100 * min(shares):.1f} to {100 * max(shares):.1f} % of its time to steps and prompts"
    assert {commit(f"zen5-2core-{each}") for each in ("throughput", "prefix", "loop")} == {"d6a2772"}


TASKS = {"mmlu_5shot": "MMLU, 5 examples", "gsm_cot": "GSM8K with reasoning", "bbh_cot": "BBH with reasoning"}


def evaluation() -> Iterator[str]:
    name = "zen5-2core-eval-125m-float32"
    for task, words in TASKS.items():
        ours = row(name, task=task, engine="baize float32")
        ratios = [row(name, task=task, engine=engine)["ratio"] for engine in ("transformers", "lm_eval hf")]
        yield cells(
            words,
            f"{ours['examples']}",
            f"{ours['seconds']:.2f} s",
            *(f"{each:.1f}" for each in ratios),
            f"{ours['prompt_tokens']:,}",
            f"{ours['computed']:,}",
        )
    assert commit(name) == "3e30a7a"
    assert all(each.get("differ", 0) == 0 for each in report(name)["rows"])  # "no answer differs", says the page


def ranks() -> Iterator[str]:
    for kind in KINDS:
        name = f"zen5-2core-ranks-1b-{kind}"
        assert commit(name) == "26882c9"
        for batch in (1, 8):
            found = [row(name, engine=f"baize {kind} {form}", batch=batch) for form in ("2 ranks", "exact", "plain")]
            exchange = row(name, engine=f"baize {kind} 2 ranks: exchange", batch=batch)
            yield cells(
                f"{kind}, {batch}{' ¹' if (kind, batch) == ('int4', 1) else ''}",
                *(three(each["tok/s"]) for each in found),
                f"{found[0]['of_exact']:.2f}",
                f"{exchange['exchange_ms']:.1f} ms, {percent(exchange['of_step'])}",
            )
    exchange = row("zen5-2core-ranks-1b-float16", engine="baize float16 2 ranks: exchange", batch=1)
    yield f"A step has {exchange['exchanges']} exchanges, {exchange['sent_KB']:.0f} KB in all at batch 1"
    values = note("performance", "exchange under load")["values"]
    yield f"float16 steps took {values['low_ms']} to {values['high_ms']} ms where they otherwise took {values['quiet_ms']}"
    for size in ("1b", "13b"):
        rows = report(f"zen5-2core-segments-{size}")["rows"]
        steps = [each["of_whole"] for each in rows if each["rows"] == 1]
        prompts = [each["of_whole"] for each in rows if each["rows"] == 256]
        words = {"1b": "1.26B", "13b": "13B"}[size]
        yield cells(words, f"{min(steps):.2f} to {max(steps):.2f}", f"{min(prompts):.2f} to {max(prompts):.2f}")


def claims() -> Iterator[str]:
    yield from speculation()
    yield from prompts()
    yield from evaluation()
    yield from ranks()
