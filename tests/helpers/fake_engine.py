"""An engine over a decoder without weights: what its tests, and those of its threads and files of prompts, start from."""

from __future__ import annotations

import torch
from fakes import EOS, VOCAB, ByteTokenizer, FakeCache, FakeSteps, ScriptDecoder, TableDecoder

from baize_engine.engine import Engine
from baize_engine.loading import LoadedModel
from baize_engine.model.prompt_runner import LOGIT_ROWS
from baize_engine.text.tokenizer import Tokenizer

TOKENIZER = ByteTokenizer()


def greedy(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1)


def engine_over(decoder: TableDecoder, cache: FakeCache, **changes: object) -> Engine:
    """A greedy engine over the fakes; `changes` are fields of its LoadedModel."""
    fields = {"sample": greedy, "vocab_size": VOCAB, "max_model_len": 60, "eos_token_ids": (EOS,), **changes}
    return Engine(LoadedModel(decoder, cache, FakeSteps(decoder, cache), **fields))  # type: ignore[arg-type]


def make(decoder: TableDecoder, tokenizer: ByteTokenizer | None = TOKENIZER, **changes: object) -> Engine:
    return engine_over(decoder, FakeCache(changes.pop("blocks", 64)), tokenizer=tokenizer, **changes)


def all_free(engine: Engine) -> bool:
    return engine._cache.free_blocks == engine._cache.num_blocks


class AllRows(TableDecoder):
    """A TableDecoder that gives the logits of a range when asked, and notes of how many rows at a time."""

    def __init__(self, vocab: int) -> None:
        super().__init__(vocab)
        self.logit_rows: list[int] = []

    def prefill_logits(self, ids, sequence, first, take):  # type: ignore[no-untyped-def]
        begin = sequence.length
        rows = torch.cat([self.forward([[i]], [sequence]) for i in ids])
        for row in range(first - begin, len(ids), LOGIT_ROWS):
            part = rows[row : row + LOGIT_ROWS]
            self.logit_rows.append(len(part))
            take(begin + row, part)


def engine_of(tokenizer: Tokenizer, vocab: int) -> Engine:
    # a table of all pairs of 32000 tokens would be too large
    decoder = TableDecoder(vocab) if vocab < 1000 else ScriptDecoder([], 0, vocab)
    return engine_over(decoder, FakeCache(), tokenizer=tokenizer, vocab_size=vocab)
