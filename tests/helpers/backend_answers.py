"""What an engine on the CPU generates, scores and says in a chat: also called in Triton's interpreter, by another process."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import tiny
import torch

from baize_engine import Engine, SamplingParams, quantize

PAIR = Path(__file__).parents[2] / "baize_engine" / "demo_pair"
KINDS = ("float16", "bfloat16", "float32", "int8", "int4")


def models(root: Path) -> dict[str, Path]:
    """A model of one layer in each type of weights, with the demo's tokenizer."""
    cfg = tiny.config(num_hidden_layers=1, vocab_size=1024)
    made = {}
    for kind in KINDS[:3]:
        weights = tiny.state(cfg, dtype=getattr(torch, kind), scale=0.2)
        made[kind] = tiny.write_model(root / kind, {**cfg, "torch_dtype": kind}, weights)
        for path in (PAIR / "base").glob("tokenizer*"):
            shutil.copy(path, made[kind])
    for kind in KINDS[3:]:
        made[kind] = quantize(made["float32"], root / kind, kind).folder
    return made


def answers(folder: str, backend: str) -> tuple[list[int], list[float], str]:
    """Token ids, scores and a chat's text by `backend` ("": the best)."""
    before = os.environ.get("BAIZE_BACKEND")
    os.environ["BAIZE_BACKEND"] = backend
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Engine.from_pretrained(folder, device="cpu") as engine:
                short = SamplingParams(max_new_tokens=3)
                (ids,) = engine.generate("The cat", short)
                scores = engine.score("The cat", [" sat", " ran"])
                hi = [{"role": "user", "content": "Hi"}]  # no token's two best logits are near each other
                return ids.token_ids, scores, engine.chat(hi, short).text
    finally:
        os.environ.pop("BAIZE_BACKEND")
        if before is not None:
            os.environ["BAIZE_BACKEND"] = before
