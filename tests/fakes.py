"""Stand-ins for the decode loop's neighbours: a decoder without weights, a cache that counts, byte and small tokenizers."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cache

import sentencepiece
import torch

EOS = 2
FIRST_BYTE = 3  # ids below it: unknown, begin, end
VOCAB = FIRST_BYTE + 256


@dataclass
class FakeSequence:
    blocks: list[int] = field(default_factory=list)
    length: int = 0


class FakeCache:
    """Blocks of 4 positions, handed out and taken back; the free ones are counted."""

    def __init__(self, num_blocks: int = 64) -> None:
        self.total = num_blocks
        self.free_ids = list(range(num_blocks))

    @property
    def free_blocks(self) -> int:
        return len(self.free_ids)

    def allocate(self) -> FakeSequence:
        return FakeSequence()

    def grow(self, sequence: FakeSequence, new_tokens: int) -> None:
        sequence.length += new_tokens
        while len(sequence.blocks) * 4 < sequence.length:
            sequence.blocks.append(self.free_ids.pop())

    def free(self, sequence: FakeSequence) -> None:
        self.free_ids += sequence.blocks
        sequence.blocks = []


class TableDecoder:
    """Logits from a seeded table by the last token and its position: the same for the same history end, always."""

    def __init__(self, vocab: int = 40, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(7, vocab, vocab, generator=generator) * 2
        self.fail_at: int | None = None  # a position whose logits get a NaN
        self.calls: list[int] = []  # tokens fed by each call

    def prefill(self, ids: list[int], sequence: FakeSequence, cache: FakeCache) -> torch.Tensor:
        return self.forward([ids], [sequence], cache)

    def forward(self, token_ids: list[list[int]], sequences: list[FakeSequence], cache: FakeCache) -> torch.Tensor:
        rows = []
        for ids, sequence in zip(token_ids, sequences, strict=True):
            cache.grow(sequence, len(ids))
            self.calls.append(len(ids))
            row = self.table[sequence.length % len(self.table), ids[-1]].clone()
            if sequence.length == self.fail_at:
                row[3] = float("nan")
            rows.append(row)
        return torch.stack(rows)


class ScriptDecoder(TableDecoder):
    """Says the given ids one after another, then the end token, whatever the prompt was."""

    def __init__(self, script: list[int], prompt_length: int, vocab: int = VOCAB) -> None:
        self.script, self.prompt_length, self.vocab = script, prompt_length, vocab
        self.calls = []

    def forward(self, token_ids: list[list[int]], sequences: list[FakeSequence], cache: FakeCache) -> torch.Tensor:
        cache.grow(sequences[0], len(token_ids[0]))
        self.calls.append(len(token_ids[0]))
        step = sequences[0].length - self.prompt_length
        logits = torch.zeros(1, self.vocab)
        logits[0, self.script[step] if step < len(self.script) else EOS] = 10.0
        return logits


class ByteTokenizer:
    """One id per byte of UTF-8, no dummy space: enough for everything that takes a tokenizer."""

    bos_id = 1
    eos_id = EOS
    vocab_size = VOCAB
    strips_first_space = False
    strips_all_spaces = False

    def encode(self, text: str, add_bos: bool = True, **_: bool) -> list[int]:
        return [self.bos_id] * add_bos + [FIRST_BYTE + byte for byte in text.encode()]

    def piece(self, token_id: int) -> str | bytes:
        return "" if token_id < FIRST_BYTE else bytes([token_id - FIRST_BYTE])

    def decode(self, ids: list[int]) -> str:
        return bytes(i - FIRST_BYTE for i in ids if i >= FIRST_BYTE).decode(errors="replace")


@cache
def small_model(**changes: object) -> bytes:
    """A sentencepiece model trained on the spot in LLaMA's settings: BPE, byte fallback, no normalisation."""
    words = [
        "the",
        "a",
        "cat",
        "dog",
        "sat",
        "on",
        "mat",
        "ran",
        "to",
        "from",
        "house",
        "tree",
        "and",
        "saw",
        "big",
        "red",
        "ball",
        "who",
        "are",
        "you",
        "hello",
        "world",
    ]
    lines = [" ".join(words[(i * k + j) % len(words)] for j in range(9)) for i in range(40) for k in (1, 3, 7)]
    settings = {
        "model_type": "bpe",
        "vocab_size": 360,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": False,
        "num_threads": 1,
        "minloglevel": 2,
        **changes,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **settings)
    return model.getvalue()
