"""The models of bench_speculate: the demo model by itself and in a preset's shape, stories260K, any folder, random weights.

Random weights say nothing that could be proposed: they stand only where nothing is to be accepted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import torch
from model_files import Store
from models import random_model
from shapes import PRESETS
from speculation_prompts import KINDS as PROMPT_KINDS
from speculation_prompts import Prompt, prompts
from widened import write_widened

from baize_engine import Engine, SamplingParams, recover
from baize_engine.cli.demo import PAIR
from baize_engine.loading import load
from baize_engine.model.llama import Llama
from baize_engine.options import QUANTIZED, EngineOptions
from baize_engine.requests import Requests

SHARED = Path(os.environ.get("BAIZE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
STORIES = "assets/stories260K"
RANDOM = "-random"  # after a preset's name: its shape with random weights
FEW = 64  # ids of a model whose pairs of ids occur again and again, and go on differently each time
RANDOM_PROMPT = 256  # tokens


@dataclass(frozen=True)
class Subject:
    """A model, what it is, and its prompts by kind."""

    what: str
    model: Llama
    requests: Requests
    params: SamplingParams
    prompts: dict[str, list[list[int]]]


class Folders:
    """Where models are, by the names that options give them; made under `folder` when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, name: str, kind: str) -> tuple[Path, str]:
        """The folder of the model `name`, and what the model is. A preset's is of weights of `kind` already."""
        if name == "demo":
            return self._demo(), "demo model"
        if name == "260k":
            return SHARED / STORIES, "stories260K"
        if name in PRESETS:
            write = partial(write_widened, self._demo())
            return Store(self._folder / "widened", name, write).ours(kind), f"demo model in the shape of {name}"
        return Path(name), name

    def _demo(self) -> Path:
        out = self._folder / "demo"
        if not out.exists():
            recover(PAIR / "base", PAIR / "diff", out, device="cpu", progress=False)
        return out


def subjects(
    name: str, kind: str, folders: Folders, device: str, each: int, tokens: int, temperature: float
) -> Iterator[Subject]:
    """The models of `name` with weights of `kind`, with `each` prompts of every kind, for answers of at most `tokens` ids."""
    if name.endswith(RANDOM):
        shape = PRESETS[name.removesuffix(RANDOM)]
        for ids in (FEW, shape.vocabulary):
            yield _random(random_model(replace(shape, vocabulary=ids), kind, device), name, each, tokens)
        return
    folder, what = folders.of(name, kind)
    yield _of_folder(
        folder, what, kind, device, each, SamplingParams(temperature=temperature, seed=0, max_new_tokens=tokens)
    )


def _of_folder(folder: Path, what: str, kind: str, device: str, each: int, params: SamplingParams) -> Subject:
    how = {"quantize": kind} if kind in QUANTIZED else {"dtype": kind}
    loaded = load(folder, EngineOptions(device=device, **how))
    engine = Engine(loaded)
    requests = Requests(
        engine.vocab_size, engine.max_model_len, engine.eos_token_ids, engine.tokenizer, loaded.why_no_text
    )
    found: dict[str, list[list[int]]] = {kind: [] for kind in PROMPT_KINDS}
    for prompt in _drawn(each):
        ids = engine.chat_ids([{"role": "user", "content": question(prompt)}])
        if len(ids) + params.max_new_tokens <= engine.max_model_len:
            found[prompt.kind].append(ids)
    return Subject(what, loaded.loop.decoder.model, requests, params, found)


def _drawn(each: int) -> Iterator[Prompt]:
    """`each` prompts of every kind."""
    drawn = dict.fromkeys(PROMPT_KINDS, 0)
    for seed in count(2026):
        for prompt in prompts(seed):
            if drawn[prompt.kind] < each:
                drawn[prompt.kind] += 1
                yield prompt
        if min(drawn.values()) == each:
            return


def question(prompt: Prompt) -> str:
    """What the prompt asks, without the demo model's chat format: each model has its own."""
    return prompt.text.removeprefix("<|user|>\n").removesuffix("\n<|assistant|>\n")


def _random(model: Llama, name: str, each: int, tokens: int) -> Subject:
    """Prompts of random ids. A model of random weights draws nearly each id with the same chance."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    length = min(RANDOM_PROMPT, config.max_position_embeddings - tokens)
    ids = torch.randint(3, config.vocab_size, (each, length), generator=generator).tolist()
    requests = Requests(config.vocab_size, config.max_position_embeddings, (), None, "random weights")
    params = SamplingParams(temperature=1.0, seed=0, max_new_tokens=tokens, ignore_eos=True)
    what = f"random weights, {config.vocab_size} ids, shape of {name.removesuffix(RANDOM)}"
    return Subject(what, model, requests, params, {"random ids": ids})
