"""An engine over a decoder without weights: what its tests, and those of its threads and files of prompts, start from."""

from __future__ import annotations

from typing import Any

import torch
from fakes import EOS, VOCAB, ByteTokenizer, FakeBatch, FakeCache, ScriptDecoder, TableDecoder

from baize_engine.engine import Engine
from baize_engine.generation.loop import MAX_ROWS, Loop
from baize_engine.generation.sampling import SampleOp
from baize_engine.loaded_model import LoadedModel
from baize_engine.text.tokenizer import Tokenizer

TOKENIZER = ByteTokenizer()


def greedy(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1)


def engine_over(decoder: TableDecoder, cache: FakeCache, **changes: object) -> Engine:
    """A greedy engine over the fakes; `changes` are fields of its LoadedModel."""
    fields = {"vocab_size": VOCAB, "max_model_len": 60, "eos_token_ids": (EOS,), **changes}
    return Engine(LoadedModel(loop_over(decoder, cache), **fields))  # type: ignore[arg-type]


def loop_over(decoder: Any, cache: Any, max_rows: int = MAX_ROWS, sample: SampleOp = greedy) -> Loop:
    """The loop over the fakes."""
    decoder.cache, batch = cache, FakeBatch(decoder, cache)
    return Loop(decoder, max_rows, batch=batch, sample=sample)  # type: ignore[arg-type]


def make(decoder: TableDecoder, tokenizer: ByteTokenizer | None = TOKENIZER, **changes: object) -> Engine:
    return engine_over(decoder, FakeCache(changes.pop("blocks", 64)), tokenizer=tokenizer, **changes)


def saying(text: str, prompt: str = "q", **changes: object) -> Engine:
    """An engine whose answer to `prompt` is `text`, then the end token."""
    script = TOKENIZER.encode(text, add_bos=False)
    return make(ScriptDecoder(script, len(TOKENIZER.encode(prompt))), **changes)


def all_free(engine: Engine) -> bool:
    pool = engine._serving.loop.pool
    return pool.free_blocks == pool.num_blocks


def engine_of(tokenizer: Tokenizer, vocab: int) -> Engine:
    # a table of all pairs of 32000 tokens would be too large
    decoder = TableDecoder(vocab) if vocab < 1000 else ScriptDecoder([], 0, vocab)
    return engine_over(decoder, FakeCache(), tokenizer=tokenizer, vocab_size=vocab)
