"""Tiny decoders, and runs of them that return plain lists: for tests here and in the interpreter's process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tiny
import torch

from baize_engine import Engine, SamplingParams
from baize_engine.backend import choose
from baize_engine.generation.block_pool import BlockPool
from baize_engine.generation.loop import Loop
from baize_engine.generation.scheduler import Scheduler
from baize_engine.generation.sequence import Sequence
from baize_engine.kernels import quantized
from baize_engine.loaded_model import LoadedModel
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import PromptRunner, new_cache


def make(cfg: dict, dtype: torch.dtype = torch.float32, quantize: str | None = None, joined: bool = False) -> Llama:
    """A decoder with seeded weights; as on a GPU where `joined`: activations of the weights' type, int4 in rows."""
    weights: dict = tiny.state(cfg, 0, dtype, scale=0.2)
    if quantize:
        plain = ("norm.weight", names.EMBED)
        weights = {n: w if n.endswith(plain) else quantized.quantize(w, quantize) for n, w in weights.items()}
    if joined:
        weights = {n: quantized.in_rows(w) if isinstance(w, quantized.Int4Weight) else w for n, w in weights.items()}
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
        self.pool = BlockPool(cache.num_blocks, cache.block_size, cache.chunk)
        self._own: set[Sequence] = set()

    def sequence(self, tokens: int = 0) -> Sequence:
        """An empty one, which has room for so many tokens already."""
        self._own.add(sequence := Sequence([], SamplingParams(), 0))
        self.pool.reserve(sequence, tokens)
        return sequence

    def prefill(self, ids: list[int], sequence: Sequence) -> torch.Tensor:
        self._reserve([ids], [sequence])
        return super().prefill(ids, sequence)

    def forward(self, token_ids: list[list[int]], sequences: list[Sequence], *rest: bool, **how: bool) -> torch.Tensor:
        self._reserve(token_ids, sequences)
        return super().forward(token_ids, sequences, *rest, **how)

    def _reserve(self, token_ids: list[list[int]], sequences: list[Sequence]) -> None:
        for ids, sequence in zip(token_ids, sequences, strict=False):
            if sequence in self._own:  # a loop reserves for its own
                self.pool.reserve(sequence, len(ids))

    def loop(self) -> Loop:
        return Loop(self)

    def engine(self, **options: object) -> Engine:
        """The engine over it, whose texts are ids."""
        fields = {"vocab_size": self.model.config.vocab_size, "eos_token_ids": (2,), "max_model_len": 128, **options}
        return Engine(LoadedModel(self.loop(), **fields))  # type: ignore[arg-type]


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 96, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def asked(ids: list[int], left: int, **row: object) -> Sequence:
    """A sequence that makes `left` tokens after its first; `row`: parameters, seed, index and stop_ids."""
    own = {name: row.pop(name) for name in ("seed", "index", "stop_ids") if name in row}
    return Sequence(ids, SamplingParams(**row), left + 1, **own)


def finish(loop: Loop, many: list[Sequence]) -> None:
    """Steps until all of them have finished."""
    while not all(one.finished for one in many):
        loop.step()


def decode(
    model: Llama, prompts: list[list[int]], rows: list[dict], tokens: int = 512, ahead: bool = False
) -> tuple[list[list[int]], list[int]]:
    """A loop over these prompts: ({tokens of each, the first included}, free blocks at the end and all)."""
    loop = Decoder(model, tokens, ahead=ahead).loop()
    many = [asked(ids, **row) for ids, row in zip(prompts, rows, strict=True)]
    loop.add(many)
    finish(loop, many)
    return [one.token_ids for one in many], [loop.pool.free_blocks, loop.pool.num_blocks]


def all_free(engine: Engine) -> bool:
    pool = engine._serving.loop.pool
    return pool.free_blocks == pool.num_blocks


@contextmanager
def actions() -> Iterator[list[str]]:
    """Names of what schedulers say meanwhile."""
    kinds: list[str] = []
    following = Scheduler.schedule

    def recorded(self: Scheduler, in_flight: bool) -> object:
        action = following(self, in_flight)
        kinds.append(type(action).__name__)
        return action

    Scheduler.schedule = recorded  # type: ignore[method-assign]
    try:
        yield kinds
    finally:
        Scheduler.schedule = following  # type: ignore[method-assign]


def answers(
    model: Llama, prompts: list[list[int]], params: list[SamplingParams], tokens: int = 4096, ahead: bool = False,
    chunk: int | None = None,
) -> tuple[list[tuple[list[int], str]], list[str]]:  # fmt: skip
    """An engine's ({ids, why they ended} of each sample, names of the scheduler's actions), its cache checked."""
    engine = Decoder(model, tokens, ahead=ahead, chunk=chunk).engine()
    with actions() as kinds:
        done = engine.generate(prompts, params)
    assert all_free(engine)
    return [(each.token_ids, str(each.finish_reason)) for each in done], kinds


def run_answers(cfg: dict, dtype: torch.dtype, quantize: str | None, chunk: int, *rest: object) -> tuple:
    return answers(make(cfg, dtype, quantize, joined=True), *rest, chunk=chunk)  # type: ignore[arg-type]


def run_scores(
    cfg: dict, dtype: torch.dtype, quantize: str | None, chunk: int, calls: list[list[list[int]]], tokens: int
) -> list[list[tuple]]:
    """Scores of the prompts of each call, one call after another, while a completion is being made."""
    engine = Decoder(make(cfg, dtype, quantize, joined=True), tokens, ahead=True, chunk=chunk).engine()
    running = engine.completions([[5, 6], [5, 7]], [SamplingParams(max_new_tokens=1), SamplingParams(max_new_tokens=4)])
    next(running)
    found = []
    for prompts in calls:
        given, last = engine.prompt_logprobs(prompts, top=1), engine.next_token_logprobs(prompts, [5, 9])
        found.append(
            [([(one.logprob, one.top) for one in row if one], each) for row, each in zip(given, last, strict=True)]
        )
    return found


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
