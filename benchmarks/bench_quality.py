"""The quality lost by quantised weights: KL divergence of the logits, perplexity, and squared errors of the matrices.

The text is the model's own, sampled with fixed seeds, so that any model can be judged without data. Its perplexity is low by
construction, and only differences count. On the CPU: KL, perplexity and argmax by the reference ops, whose
activations are float32; then what the kernels' activations add where they meet quantised weights, KL of the logits from the
reference's on the same weights: with `exact_activations`, as in a decode step, and as a prompt runs by default.

Where gguf is installed, the same of llama.cpp's four-bit formats as that package makes them, with the reference ops.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import parser
from matrix_errors import GGUF, Matrices, has_gguf, matrices, squared_errors, through_gguf
from models import Decoder
from reports import Report

from baize_engine import recover
from baize_engine.backend import choose
from baize_engine.model import cost, names
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import Llama
from baize_engine.model.weights import load_weights

DEMO = Path(__file__).resolve().parents[1] / "baize_engine" / "demo_pair"


def load(folder: Path, quantize: str | None) -> tuple[Llama, Llama, Llama]:
    """The same weights with the reference ops, with the kernels and exact activations, and with the kernels as they come."""
    config = ModelConfig.from_folder(folder)
    weights = load_weights(folder, config, quantize=quantize)
    ops = choose.ops("cpu")
    return (
        Llama(config, weights, choose.reference_ops("cpu")),
        Llama(config, weights, ops, exact_activations=True),
        Llama(config, weights, ops),
    )


def speak(model: Llama, length: int, seed: int) -> list[int]:
    """Ids that the model draws from its own distribution after the begin token."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(model, length)
    sequence, ids = decoder.sequence(), [1]  # LLaMA's begin token
    logits = decoder.prefill(ids, sequence)
    while len(ids) < length:
        ids.append(int(torch.multinomial(logits[0].softmax(-1), 1, generator=generator)))
        if len(ids) < length:
            logits = decoder.forward([[ids[-1]]], [sequence])
    return ids


def logits_of(model: Llama, ids: list[int]) -> torch.Tensor:
    decoder = Decoder(model, len(ids))
    return decoder.forward([ids], [decoder.sequence()], all_logits=True, prompt=True)


def divergence(exact: torch.Tensor, other: torch.Tensor) -> float:
    """KL(exact || other) in nats, the mean over positions; logits (T, V)."""
    p, q = exact.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def mean_divergence(exact: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return sum(divergence(a, b) for a, b in zip(exact, other, strict=True)) / len(exact)


def loss(logits: torch.Tensor, ids: list[int]) -> float:
    """Mean negative log-likelihood of ids[1:], in nats."""
    return float(torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(ids[1:])))


def bench(report: Report, name: str, folder: Path, texts: int, length: int) -> None:
    exact, fast, _ = load(folder, None)
    length = min(length, exact.config.max_position_embeddings)
    many = [speak(fast, length, seed) for seed in range(texts)]
    wanted, published = [logits_of(exact, ids) for ids in many], matrices(exact)
    for kind in (None, "int8", "int4"):
        with report.case(model=name, weights=kind or "as published"):
            models = load(folder, kind)
            row = judged(name, kind, models, many, wanted) | squared_errors(published, matrices(models[0]))
            apart = max(row["KL"], row["added_by_exact_activations"], row["added_in_a_prompt"])
            if kind is None and not apart <= 1e-9:  # also where it is not a number
                raise SystemExit(f"{name}: the model diverges from itself by {apart}")
            report.row(row)
    for kind in GGUF if has_gguf() else ():
        with report.case(model=name, weights=f"{kind} of gguf"):
            report.row({"model": name, "weights": f"{kind} of gguf", **of_gguf(kind, exact, published, many, wanted)})


def of_gguf(
    kind: str, exact: Llama, published: Matrices, many: list[list[int]], wanted: list[torch.Tensor]
) -> dict[str, Any]:
    """KL and errors of the model whose matrices are of `kind`, one of GGUF."""
    found = through_gguf(published, kind)
    if found is None:
        return {"KL": "not available", "squared_error": "not available"}
    kept = {name: weight for name, weight in exact.weights.items() if names.parts(name)[0] not in found}
    model = replace(exact, weights={**kept, **found})
    return {"KL": mean_divergence(wanted, [logits_of(model, ids) for ids in many]), **squared_errors(published, found)}


def judged(
    name: str, kind: str | None, models: tuple[Llama, ...], many: list[list[int]], wanted: list[torch.Tensor]
) -> dict[str, Any]:
    """The row of weights of `kind`: what `models`, as `load` gives them, say of the texts."""
    found, fine, int8_activations = ([logits_of(model, ids) for ids in many] for model in models)
    agree = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(wanted, found, strict=True)])
    losses = torch.tensor([loss(a, ids) for a, ids in zip(found, many, strict=True)])
    return {
        "model": name, "weights": kind or "as published",
        "MB": cost.weight_bytes(models[0].config, kind or "float16", kept="float16") / 1e6,
        "KL": mean_divergence(wanted, found), "added_by_exact_activations": mean_divergence(found, fine),
        "added_in_a_prompt": mean_divergence(found, int8_activations), "perplexity": float(losses.mean().exp()),
        "same_argmax": float(agree.float().mean()), "tokens": sum(map(len, many)),
    }  # fmt: skip


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument(
        "models", nargs="*", type=Path, metavar="MODEL", help="folders of models to judge besides the demo model"
    )
    options.add_argument("--texts", type=int, default=16)
    options.add_argument("--length", type=int, default=200, help="tokens of each text")
    chosen = options.parse_args()
    with Report("quality", chosen) as report, tempfile.TemporaryDirectory() as temporary:
        demo = Path(temporary) / "demo"
        recover(DEMO / "base", DEMO / "diff", demo, device="cpu", progress=False)
        folders = {"demo": demo, **{path.resolve().name: path for path in chosen.models}}
        for name, path in folders.items():
            with report.case(model=name):
                bench(report, name, path, chosen.texts, chosen.length)
    return report.code


if __name__ == "__main__":
    sys.exit(main())
