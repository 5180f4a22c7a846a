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
from model_files import Store, write_model
from shapes import PRESETS, Shape
from speculation_prompts import KINDS as PROMPT_KINDS
from speculation_prompts import Prompt, prompts
from widened import write_widened

from baize_engine import Engine, SamplingParams, recover
from baize_engine.cli.demo import PAIR
from baize_engine.generation.loop import Loop
from baize_engine.generation.sequence import Sequence
from baize_engine.loading import load
from baize_engine.model.config import ModelConfig
from baize_engine.options import QUANTIZED, EngineOptions
from baize_engine.requests import Requests

SHARED = Path(os.environ.get("BAIZE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
STORIES = "assets/stories260K"
RANDOM = "-random"  # after a preset's name: its shape with random weights
FEW = 64  # ids of a model whose pairs of ids occur again and again, and go on differently each time
RANDOM_PROMPT = 256  # tokens


@dataclass(frozen=True)
class Subject:
    """A model's folder, what the model is, and its prompts by kind. kind: of the weights, which the folder may hold in another.

    Loops over the folder share its pages on a CPU, where the folder holds the weights as they are used.
    """

    folder: Path
    what: str
    kind: str
    device: str
    requests: Requests
    params: SamplingParams
    prompts: dict[str, list[list[int]]]

    def loop(self, cache_tokens: int, speculate: str | None = None) -> Loop:
        """The loop that an engine of the model has."""
        return load(self.folder, options(self.folder, self.kind, self.device, cache_tokens, speculate)).loop

    def sequences(self, group: list[list[int]]) -> list[Sequence]:
        """Those of a request."""
        return self.requests.sequences(group, self.params)


def options(folder: Path, kind: str, device: str, cache_tokens: int, speculate: str | None = None) -> EngineOptions:
    """How an engine holds the folder's model with weights of `kind`."""
    if kind not in QUANTIZED:
        return EngineOptions(device=device, dtype=kind, cache_tokens=cache_tokens, speculate=speculate)
    stored = ModelConfig.from_folder(folder).quantization
    return EngineOptions(
        device=device, quantize=None if stored == kind else kind, cache_tokens=cache_tokens, speculate=speculate
    )


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

    def random(self, preset: str, ids: int, kind: str) -> Path:
        """The folder of random weights in a preset's shape, but for `ids` ids."""

        def write(shape: Shape, folder: Path, stored: str) -> None:
            write_model(replace(shape, vocabulary=ids), folder, stored)

        return Store(self._folder / f"random-{ids}", preset, write).ours(kind)

    def _demo(self) -> Path:
        out = self._folder / "demo"
        if not out.exists():
            recover(PAIR / "base", PAIR / "diff", out, device="cpu", progress=False)
        return out


def subjects(
    name: str, kind: str, folders: Folders, device: str, each: int, tokens: int, temperature: float
) -> Iterator[Subject]:
    """The models of `name` with weights of `kind`, with `each` prompts of every kind, for answers of at most `tokens` ids."""
    if not name.endswith(RANDOM):
        folder, what = folders.of(name, kind)
        params = SamplingParams(temperature=temperature, seed=0, max_new_tokens=tokens)
        yield _of_folder(folder, what, kind, device, each, params)
        return
    preset = name.removesuffix(RANDOM)
    for ids in (FEW, PRESETS[preset].vocabulary):
        yield _random(
            folders.random(preset, ids, kind),
            f"random weights, {ids} ids, shape of {preset}",
            kind,
            device,
            each,
            tokens,
        )


def _of_folder(folder: Path, what: str, kind: str, device: str, each: int, params: SamplingParams) -> Subject:
    positions = ModelConfig.from_folder(folder).max_position_embeddings
    with Engine(load(folder, options(folder, kind, device, positions))) as engine:
        requests = Requests(engine.vocab_size, engine.max_model_len, engine.eos_token_ids, engine.tokenizer, "")
        found: dict[str, list[list[int]]] = {kind: [] for kind in PROMPT_KINDS}
        for prompt in _drawn(each):
            ids = engine.chat_ids([{"role": "user", "content": question(prompt)}])
            if len(ids) + params.max_new_tokens <= engine.max_model_len:
                found[prompt.kind].append(ids)
    return Subject(folder, what, kind, device, requests, params, found)


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


def _random(folder: Path, what: str, kind: str, device: str, each: int, tokens: int) -> Subject:
    """Prompts of random ids. A model of random weights draws nearly each id with the same chance."""
    config = ModelConfig.from_folder(folder)
    generator = torch.Generator().manual_seed(0)
    length = min(RANDOM_PROMPT, config.max_position_embeddings - tokens)
    ids = torch.randint(3, config.vocab_size, (each, length), generator=generator).tolist()
    requests = Requests(config.vocab_size, config.max_position_embeddings, (), None, "random weights")
    params = SamplingParams(temperature=1.0, seed=0, max_new_tokens=tokens, ignore_eos=True)
    return Subject(folder, what, kind, device, requests, params, {"random ids": ids})
