"""What quantised weights cost in quality: KL divergence of the logits, and perplexity, against the model's own weights.

The text is what the model itself says, sampled with seeds, so that any model can be judged without data; its perplexity is
then low by construction, and only differences count. On the CPU, by the reference ops, whose activations are float32 ("exact"),
and by the kernels that the backend chooses, which meet int8 and int4 weights with activations of their own precision.
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


def load(folder: Path, quantize: str | None) -> tuple[Llama, Llama]:
    """The same weights with the reference ops and with the kernels."""
    config = ModelConfig.from_folder(folder)
    weights = load_weights(folder, config, quantize=quantize)
    return Llama(config, weights, reference), Llama(config, weights, backend.ops("cpu"))


def speak(model: Llama, length: int, seed: int) -> list[int]:
    """Ids that the model draws from its own distribution after the begin token."""
    generator = torch.Generator().manual_seed(seed)
    cache = model.new_cache(length)
    sequence, ids = cache.allocate(), [model.config.bos_token_id or 1]
    logits = model.prefill(ids, sequence, cache)
    while len(ids) < length:
        ids.append(int(torch.multinomial(logits[0].softmax(-1), 1, generator=generator)))
        if len(ids) < length:
            logits = model.forward([[ids[-1]]], [sequence], cache)
    return ids


def logits_of(model: Llama, ids: list[int]) -> torch.Tensor:
    cache = model.new_cache(len(ids))
    return model.forward([ids], [cache.allocate()], cache, all_logits=True)


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
    exact, fast = load(folder, None)
    length = min(length, exact.config.max_position_embeddings)
    many = [speak(fast, length, seed) for seed in range(texts)]
    wanted = [logits_of(exact, ids) for ids in many]
    rows = []
    for kind in (None, "int8", "int4"):
        slow, model = load(folder, kind)
        weights_alone = [logits_of(slow, ids) for ids in many]
        found = [logits_of(model, ids) for ids in many]
        agree = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(wanted, found, strict=True)])
        rows.append(
            {
                "model": name,
                "weights": kind or "as published",
                "MB": cost.weight_bytes(model.config, kind or "float16", kept="float16") / 1e6,
                "KL": mean_divergence(wanted, found),
                "KL_exact": mean_divergence(wanted, weights_alone),
                "KL_activations": mean_divergence(weights_alone, found),
                "perplexity": float(
                    torch.tensor([loss(a, ids) for a, ids in zip(found, many, strict=True)]).mean().exp()
                ),
                "same_argmax": float(agree.float().mean()),
                "tokens": texts * length,
            }
        )
    if rows[0]["KL_exact"] != 0 or rows[0]["KL"] > 1e-9:
        raise SystemExit(f"{name}: the model diverges from itself by {rows[0]['KL_exact']} and {rows[0]['KL']}")
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
