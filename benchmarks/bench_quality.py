"""What quantised weights cost in quality: KL divergence of the logits, and perplexity, against the model's own weights.

The text is what the model itself says, sampled with seeds, so that any model can be judged without data; its perplexity is
then low by construction, and only differences count. On the CPU: KL, perplexity and argmax by the reference ops, whose
activations are float32; then what the kernels' activations add where they meet quantised weights, KL of the logits from the
reference's on the same weights: with `exact_activations`, as in a decode step, and as a prompt runs by default.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import parser, report

from baize_engine import backend, recover
from baize_engine.kernels import reference
from baize_engine.model import cost
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import Llama
from baize_engine.model.weights import load_weights

DEMO = Path(__file__).resolve().parents[1] / "baize_engine" / "demo_pair"


def load(folder: Path, quantize: str | None) -> tuple[Llama, Llama, Llama]:
    """The same weights with the reference ops, with the kernels and exact activations, and with the kernels as they come."""
    config = ModelConfig.from_folder(folder)
    weights = load_weights(folder, config, quantize=quantize)
    ops = backend.ops("cpu")
    return (
        Llama(config, weights, reference),
        Llama(config, weights, ops, exact_activations=True),
        Llama(config, weights, ops),
    )


def speak(model: Llama, length: int, seed: int) -> list[int]:
    """Ids that the model draws from its own distribution after the begin token."""
    generator = torch.Generator().manual_seed(seed)
    cache = model.new_cache(length)
    sequence, ids = cache.allocate(), [1]  # LLaMA's begin token
    logits = model.prefill(ids, sequence, cache)
    while len(ids) < length:
        ids.append(int(torch.multinomial(logits[0].softmax(-1), 1, generator=generator)))
        if len(ids) < length:
            logits = model.forward([[ids[-1]]], [sequence], cache)
    return ids


def logits_of(model: Llama, ids: list[int]) -> torch.Tensor:
    cache = model.new_cache(len(ids))
    return model.forward([ids], [cache.allocate()], cache, all_logits=True, prompt=True)


def divergence(exact: torch.Tensor, other: torch.Tensor) -> float:
    """KL(exact || other) in nats, the mean over positions; logits (T, V)."""
    p, q = exact.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def mean_divergence(exact: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return sum(divergence(a, b) for a, b in zip(exact, other, strict=True)) / len(exact)


def loss(logits: torch.Tensor, ids: list[int]) -> float:
    """Mean negative log-likelihood of ids[1:], in nats."""
    return float(torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(ids[1:])))


def bench(name: str, folder: Path, texts: int, length: int) -> list[dict[str, Any]]:
    exact, fast, _ = load(folder, None)
    length = min(length, exact.config.max_position_embeddings)
    many = [speak(fast, length, seed) for seed in range(texts)]
    wanted = [logits_of(exact, ids) for ids in many]
    rows = []
    for kind in (None, "int8", "int4"):
        model, fine, coarse = load(folder, kind)
        found, with_fine, with_coarse = ([logits_of(each, ids) for ids in many] for each in (model, fine, coarse))
        agree = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(wanted, found, strict=True)])
        rows.append(
            {
                "model": name,
                "weights": kind or "as published",
                "MB": cost.weight_bytes(model.config, kind or "float16", kept="float16") / 1e6,
                "KL": mean_divergence(wanted, found),
                "added_by_exact_activations": mean_divergence(found, with_fine),
                "added_in_a_prompt": mean_divergence(found, with_coarse),
                "perplexity": float(
                    torch.tensor([loss(a, ids) for a, ids in zip(found, many, strict=True)]).mean().exp()
                ),
                "same_argmax": float(agree.float().mean()),
                "tokens": texts * length,
            }
        )
    apart = max(rows[0]["KL"], rows[0]["added_by_exact_activations"], rows[0]["added_in_a_prompt"])
    if apart > 1e-9:
        raise SystemExit(f"{name}: the model diverges from itself by {apart}")
    return rows


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("models", nargs="*", type=Path, metavar="MODEL", help="folders to judge beside the demo model")
    options.add_argument("--texts", type=int, default=16)
    options.add_argument("--length", type=int, default=200, help="tokens of each text")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        demo = Path(temporary) / "demo"
        recover(DEMO / "base", DEMO / "diff", demo, device="cpu", progress=False)
        folders = {"demo": demo, **{path.resolve().name: path for path in chosen.models}}
        rows = [row for name, path in folders.items() for row in bench(name, path, chosen.texts, chosen.length)]
    report("quality", rows, chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
