"""Tiny decoders, and runs of them that return plain lists: for tests here and in the interpreter's process."""

from __future__ import annotations

from typing import Any

import tiny
import torch

from baize_engine import Engine, SamplingParams
from baize_engine.backend import choose
from baize_engine.generation.scheduler import Scheduler
from baize_engine.kernels import quantized
from baize_engine.loading import LoadedModel
from baize_engine.model import names
from baize_engine.model.blocks import Sequence
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import PromptRunner, new_cache
from baize_engine.model.runner import DecodeSteps, Row


def make(cfg: dict, dtype: torch.dtype = torch.float32, quantize: str | None = None, joined: bool = False) -> Llama:
    """A decoder with seeded weights; activations of the weights' type where `joined`, as on a GPU."""
    weights: dict = tiny.state(cfg, 0, dtype, scale=0.2)
    if quantize:
        plain = ("norm.weight", names.EMBED)
        weights = {n: w if n.endswith(plain) else quantized.quantize(w, quantize) for n, w in weights.items()}
    if joined:
        for number in range(cfg["num_hidden_layers"]):
            for whole, parts in names.JOINED.items():
                matrices = [weights.pop(names.layer(number, part)) for part in parts]
                weights[names.layer(number, whole)] = quantized.join(matrices)
    config = ModelConfig.from_dict(cfg)
    return Llama(config, weights, choose.ops("cpu"), activation=dtype if joined else None)


class Decoder(PromptRunner):
    """A runner over a new cache of `tokens` tokens, in which sequences take the blocks that they need."""

    def __init__(
        self, model: Llama, tokens: int = 512, *, ahead: bool | None = None, chunk: int | None = None,
        cache_dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        cache = new_cache(model, tokens, cache_dtype, chunk)
        super().__init__(model, cache, prefill_chunk=chunk, runs_ahead=ahead)

    def sequence(self) -> Sequence:
        return self.cache.allocate()

    def prefill(self, ids: list[int], sequence: Sequence) -> torch.Tensor:
        self.cache.reserve(sequence, len(ids))
        return super().prefill(ids, sequence)

    def forward(self, token_ids: list[list[int]], sequences: list[Sequence], *rest: bool, **how: bool) -> torch.Tensor:
        for ids, sequence in zip(token_ids, sequences, strict=False):
            self.cache.reserve(sequence, len(ids))
        return super().forward(token_ids, sequences, *rest, **how)

    def engine(self, max_model_len: int = 128, **text: Any) -> Engine:
        """An engine over it, without a tokenizer unless one is given; id 2 ends an answer."""
        vocab_size, sample = self.model.config.vocab_size, self.model.ops.sample
        return Engine(LoadedModel(self, self.cache, self.steps(), sample, vocab_size, max_model_len, (2,), **text))

    def steps(self) -> DecodeSteps:
        return DecodeSteps(self.model, self.cache, runs_ahead=self.runs_ahead)


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 96, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def decode(
    model: Llama, prompts: list[list[int]], rows: list[dict], tokens: int = 512, ahead: bool = False
) -> tuple[list[list[int]], list[int]]:
    """Prefill, greedy first tokens, then DecodeSteps: ({tokens of each row, the first included}, free blocks at the end)."""
    decoder = Decoder(model, tokens, ahead=ahead)
    cache = decoder.cache
    sequences = [cache.allocate() for _ in prompts]
    made = [[int(decoder.prefill(ids, s).argmax())] for ids, s in zip(prompts, sequences, strict=True)]
    many = [Row(s, ids[0], **row) for s, ids, row in zip(sequences, made, rows, strict=True)]
    for step in decoder.steps().run(many):
        for ids, row, token in zip(made, many, step, strict=True):
            if len(ids) <= row.left and ids[-1] not in row.stop_ids:
                ids.append(token)
    for sequence in sequences:
        cache.free(sequence)
    return made, [cache.free_blocks, cache.num_blocks]


def answers(
    model: Llama, prompts: list[list[int]], params: list[SamplingParams], tokens: int = 4096, ahead: bool = False,
    chunk: int | None = None,
) -> tuple[list[tuple[list[int], str]], list[str]]:  # fmt: skip
    """An engine's ({ids, why they ended} of each sample, names of the scheduler's actions), its cache checked."""
    decoder, kinds = Decoder(model, tokens, ahead=ahead, chunk=chunk), []
    engine, cache = decoder.engine(), decoder.cache
    following = Scheduler.next

    def recorded(self: Scheduler, in_flight: bool) -> object:
        action = following(self, in_flight)
        kinds.append(type(action).__name__)
        return action

    Scheduler.next = recorded  # type: ignore[method-assign]
    try:
        done = engine.generate(prompts, params)
    finally:
        Scheduler.next = following  # type: ignore[method-assign]
    assert cache.free_blocks == cache.num_blocks
    return [(each.token_ids, str(each.finish_reason)) for each in done], kinds


def run_answers(cfg: dict, dtype: torch.dtype, quantize: str | None, chunk: int, *rest: object) -> tuple:
    return answers(make(cfg, dtype, quantize, joined=True), *rest, chunk=chunk)  # type: ignore[arg-type]


def greedy_logits(model: Llama, ids: list[int], steps: int) -> tuple[list[int], torch.Tensor]:
    """Greedy ids through forward(), and the logits (steps, V) they came from."""
    decoder = Decoder(model, len(ids) + steps)
    sequence = decoder.sequence()
    rows = [decoder.prefill(ids, sequence)[0]]
    out = [int(rows[0].argmax())]
    while len(out) < steps:
        rows.append(decoder.forward([[out[-1]]], [sequence])[0])
        out.append(int(rows[-1].argmax()))
    return out, torch.stack(rows)


def run_greedy(cfg: dict, dtype: torch.dtype, quantize: str | None, length: int, steps: int) -> tuple:
    model = make(cfg, dtype, quantize, joined=True)
    return greedy_logits(model, prompt(length), steps)


def run_decode(cfg: dict, dtype: torch.dtype, quantize: str | None, lengths: list[int], rows: list[dict]) -> list:
    model = make(cfg, dtype, quantize, joined=True)
    return decode(model, [prompt(length, length) for length in lengths], rows)[0]


def linear_in_blocks(x: torch.Tensor, weight: object, widened_bytes: int) -> torch.Tensor:
    """kernels.product.linear for a prompt, a quantised matrix being widened that many bytes at a time."""
    from baize_engine.kernels import product

    before, product.WIDENED_BYTES = product.WIDENED_BYTES, widened_bytes
    try:
        return product.linear(x, weight)
    finally:
        product.WIDENED_BYTES = before
