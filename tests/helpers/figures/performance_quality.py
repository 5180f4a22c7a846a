"""Figures of docs/performance.md: what quantised weights cost, and what is known of GPUs without one."""

from __future__ import annotations

from collections.abc import Iterator

from figures.results import commit, note, row
from figures.written import cells, percent

JUDGED = {
    ("demo", "int8"): "demo model, int8",
    ("demo", "int4"): "demo model, int4",
    ("demo", "Q4_0 of gguf"): "demo model, Q4_0 of llama.cpp",
    ("stories260K", "int8"): "stories260K, int8",
    ("stories260K", "int4"): "stories260K, int4",
    ("stories260K", "Q4_0 of gguf"): "stories260K, Q4_0 of llama.cpp",
}


def quality(model: str, weights: str) -> dict:
    """The row of bench_quality.py."""
    return row("zen5-2core-quality", model=model, weights=weights)


def weights() -> Iterator[str]:
    for (model, kind), words in JUDGED.items():
        found = quality(model, kind)
        error, added = found["squared_error"], found.get("added_in_a_prompt")
        yield cells(
            words,
            f"{found['KL']:.4f}",
            f"{error:.4f}" if error >= 0.001 else f"{error:.5f}",
            "" if added is None else f"{added:.4f}",
        )
    yield f"over {quality('demo', 'int8')['tokens']:,} tokens"
    yield f"Zen 5, commit {commit('zen5-2core-quality')}. Made by"
    seven = [
        row("amd-epyc-2core-quality", model=model, weights="int8")["added_in_a_prompt"]
        for model in ("demo", "stories260K")
    ]
    yield f"added {seven[0]:.4f} (an earlier demo model) and {seven[1]:.4f} (stories260K)"
    old = note("performance", "quality baize-1")["values"]
    yield f"had KL {old['stories_KL']:.4f} on the texts of stories260K, and a squared error of {old['stories_error']:.4f}"
    yield f"{old['least']:.2f} to {old['most']:.2f} of its squared error"


KERNELS = (
    "qkv_rope_store 13b fp16 x1",
    "gate_up 13b fp16 x1",
    "gate_up 13b int8 x1",
    "gate_up 13b int4 x1",
    "gate_up 13b fp16 x64",
    "linear_add down 13b fp16 x1",
    "head 13b fp16 x1",
    "attention decode fp16 40/40",
    "attention prefill fp16 40/40",
)


def gpu() -> Iterator[str]:
    for card, words in (("h100", "H100"), ("a100", "A100, 80 GB")):
        for preset, kind in (("7b", "float16"), ("13b", "float16"), ("13b", "int8"), ("13b", "int4")):
            found = note("performance", f"predicted {card} {preset} {kind}")["values"]
            yield cells(words, preset.upper(), kind, f"{found['step_ms']:.1f} ms", percent(found["of_specified"]))
    late = note("performance", "predicted late trigger")["values"]
    yield f"{late['step_ms']:.1f} ms instead of {note('performance', 'predicted h100 13b float16')['values']['step_ms']:.1f}"
    for kernel in KERNELS:
        found = note("performance", f"gate {kernel}")["values"]
        yield cells(
            f"`{kernel}`",
            f"{found['registers']}",
            f"{found['shared_bytes'] / 1024:.0f} KiB",
            percent(found["occupancy"]),
            found["loads"],
            found["stores"],
        )


def claims() -> Iterator[str]:
    yield from weights()
    yield from gpu()
