"""The figures of docs/guarantees.md: kills, fuzzed cases and peaks of memory; and limits of the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from assets import REPO
from tolerances import LOGITS_FLOAT32

from baize_engine.checkpoint.entry import MAX_TENSORS
from baize_engine.checkpoint.norms import LEAST
from baize_engine.checkpoint.safetensors_file import MAX_HEADER
from baize_engine.recovery.memory import MEMORY_MIB
from figures.recovering import least_memory
from figures.results import commit, note, row


def claims() -> Iterator[str]:
    every, random = note("guarantees", "killed at every call"), note("guarantees", "killed at random times")
    assert every["values"]["killed"] == every["values"]["runs"] - 1
    assert random["values"]["killed"] == random["values"]["runs"]  # "all", says the page
    yield f"Of {every['values']['runs']} runs with a kill at a chosen call {every['values']['killed']} were killed"
    yield (
        f"Of {random['values']['runs']} at random times all were killed, and {random['values']['killed_again']} of these again "
        "while they resumed"
    )
    yield f"`pytest -m slow tests/recovery/test_io_faults.py`, commit {every['commit']}"
    peaks = []
    for machine, words, part in SEVEN_RUNS:
        recovered = row(f"{machine}-2core-recover", part, method="recover")
        assert recovered["runs"] == 7
        peaks.append(f"{recovered['peak_MiB']:.0f} MiB ({words}, commit {commit(f'{machine}-2core-recover')})")
    yield f"| 1.26B, seven runs, cold files | {', '.join(peaks)} |"
    whole = note("guarantees", "memory of whole models")
    for size in ("13b", "65b"):
        peak = whole["values"][f"{size}_MiB"]
        yield f"| {size.upper()}, sparse files, commit {whole['commit']} | {peak} MiB |"
    direct = note("guarantees", "memory of from_diff")
    beyond = [direct["values"][f"{kind}_MiB"] for kind in ("float16", "int8", "int4")]
    yield f"took {beyond[0]} MiB beyond the weights in float16, {beyond[1]} in int8 and {beyond[2]} in int4"
    yield f"(one thread, commit {direct['commit']};"
    hostile = note("guarantees", "memory of hostile files")
    yield f"The worst files that we could make took {hostile['values']['most_MiB']} MiB (commit {hostile['commit']})"
    fuzz, older = note("guarantees", "fuzz"), note("guarantees", "fuzz under libFuzzer")
    assert fuzz["values"]["findings"] == older["values"]["findings"] == 0
    yield f"{fuzz['values']['cases']:,} cases ended without a finding"
    yield f"seeds 400 to 404, commit {fuzz['commit']}"
    yield f"{older['values']['cases']:,} more, of an earlier commit"


SEVEN_RUNS = [("xeon-amx", "Xeon", "rows"), ("zen5", "Zen 5", "methods")]  # an older report has the methods in its rows


def documented_lines() -> int:
    """How many command lines of other projects tests/cli/test_foreign_options.py has."""
    tree = ast.parse((REPO / "tests" / "cli" / "test_foreign_options.py").read_text())
    lists = {
        node.targets[0].id: len(node.value.elts)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.List)
    }
    return lists["RECOVER"] + lists["MAKE_DIFF"]


def harness_tolerance() -> float:
    """How close log-likelihoods must come to those of lm-evaluation-harness in tests/evaluation/lm_eval/test_model.py."""
    tree = ast.parse((REPO / "tests" / "evaluation" / "lm_eval" / "test_model.py").read_text())
    keywords = (node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "abs")
    (tolerance,) = {ast.literal_eval(node.value) for node in keywords}
    return tolerance


STATED: dict[str, str] = {
    f"the limit, {MEMORY_MIB} MiB unless given and {least_memory()} at least": "the default of --memory and the least it takes",
    "with the default and with 72 MiB": "what tests/recovery/test_memory.py asks for",
    f"{MAX_TENSORS:,} tensors at most, and a safetensors file a header of {MAX_HEADER >> 20} MiB": "limits of the readers",
    "(0.64B parameters)": "follows from the shape",
    "6,000 run in CI": "what tests/checkpoint/test_fuzz.py asks for",
    f"the limit is {LEAST})": "the limit of the check",
    "(below 0.02 on the average;": "what published diffs have, for which the limit was chosen (LEAST of norms.py)",
    f"agree with its `hf` model within {harness_tolerance():.4f}": "the tolerance of the test",
    f"on {documented_lines()} documented command lines": "counted in the test",
    f"within {LOGITS_FLOAT32:.4f} of transformers in float32": "the tolerance of the tests",
}
