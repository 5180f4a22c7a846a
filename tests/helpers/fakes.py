"""Stand-ins for the decode loop's neighbours: a decoder without weights, a cache that counts, byte and small tokenizers."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import sentencepiece
import torch

from baize_engine.model.blocks import BlockPool, Sequence

EOS = 2
FIRST_BYTE = 3  # ids below it: unknown, begin, end
VOCAB = FIRST_BYTE + 256


class FakeCache(BlockPool):
    """Blocks of 4 positions without memory: the fake decoders know a sequence by its length and its last token."""

    def __init__(self, num_blocks: int = 64) -> None:
        super().__init__(num_blocks, 4)
        self.moved: list[str] = []

    def copy_block(self, source: int, target: int) -> None:
        self.moved.append("copied")

    def take_out(self, blocks: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
        self.moved.append("out")
        return torch.zeros(1, len(list(blocks))), torch.zeros(1, 0)

    def put_back(self, saved: object, blocks: Iterable[int]) -> None:
        self.moved.append("back")


class FakeBatch:
    """Rows that step together through a decoder's `forward`; the host chooses all tokens."""

    ahead = 0

    def __init__(self, decoder: TableDecoder, cache: FakeCache, choose: Callable) -> None:
        self.decoder, self.cache, self.choose = decoder, cache, choose
        self.rows: list = []
        self.tokens: dict = {}
        self.step: tuple[list, torch.Tensor] | None = None

    @property
    def in_flight(self) -> int:
        return int(self.step is not None)

    def add(self, row) -> None:  # type: ignore[no-untyped-def]
        self.rows.append(row)
        self.tokens[row] = row.token

    def drop(self, row) -> None:  # type: ignore[no-untyped-def]
        self.rows.remove(row)

    def launch(self) -> None:
        before = [row.sequence.length for row in self.rows]
        logits = self.decoder.forward([[self.tokens[row]] for row in self.rows], [row.sequence for row in self.rows])
        for row, length in zip(self.rows, before, strict=True):
            row.sequence.length = length  # it grows when the token is read
        self.step = list(self.rows), logits

    def read(self) -> list:
        rows, logits = self.step or ([], None)
        self.step = None
        self.tokens |= zip(rows, self.choose(rows, logits), strict=True)
        return [(row, self.tokens[row]) for row in rows]


class FakeSteps:
    """What DecodeSteps is to a PromptRunner."""

    def __init__(self, decoder: TableDecoder, cache: FakeCache) -> None:
        self.decoder, self.cache = decoder, cache

    @contextmanager
    def batch(self, most: int, choose: Callable) -> Iterator[FakeBatch]:
        yield FakeBatch(self.decoder, self.cache, choose)


class TableDecoder:
    """Logits from a seeded table by the last token and its position: the same for the same history end, always."""

    prefill_chunk = 16

    def __init__(self, vocab: int = 40, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(7, vocab, vocab, generator=generator) * 2
        self.fail_at: int | None = None  # a position whose logits get a NaN
        self.calls: list[int] = []  # tokens fed by each call, and for each row of a step

    def prefill(self, ids: list[int], sequence: Sequence) -> torch.Tensor:
        return self.forward([ids], [sequence])

    def forward(self, token_ids: list[list[int]], sequences: list[Sequence]) -> torch.Tensor:
        rows = []
        for ids, sequence in zip(token_ids, sequences, strict=True):
            sequence.length += len(ids)
            self.calls.append(len(ids))
            rows.append(self.logits(sequence.length, ids[-1]))
        return torch.stack(rows)

    def logits(self, length: int, token: int) -> torch.Tensor:
        """Those of the token after `length` ids, of which `token` is the last."""
        row = self.table[length % len(self.table), token].clone()
        if length == self.fail_at:
            row[3] = float("nan")
        return row


class ScriptDecoder(TableDecoder):
    """Says the given ids one after another, then the end token, whatever the prompt was."""

    def __init__(self, script: list[int], prompt_length: int, vocab: int = VOCAB) -> None:
        self.script, self.prompt_length, self.vocab = script, prompt_length, vocab
        self.calls = []

    def logits(self, length: int, token: int) -> torch.Tensor:
        row, step = torch.zeros(self.vocab), length - self.prompt_length
        row[self.script[step] if 0 <= step < len(self.script) else EOS] = 10.0
        return row


class ByteTokenizer:
    """One id per byte of UTF-8, no dummy space: enough for everything that takes a tokenizer."""

    bos_id = 1
    eos_id = EOS
    vocab_size = VOCAB
    strips_first_space = False
    strips_all_spaces = False

    def encode(self, text: str, add_bos: bool | None = None, **_: bool) -> list[int]:
        return [self.bos_id] * (add_bos is not False) + [FIRST_BYTE + byte for byte in text.encode()]

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


@cache
def llama_sized_model() -> bytes:
    """small_model() with pieces that no text meets up to LLaMA's 32000: ids as published files have them."""
    model = small_model()
    pieces = [model]
    for token_id in range(sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size(), 32000):
        text = f"\u27e8{token_id}\u27e9".encode()
        body = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", -token_id)  # piece, score
        pieces.append(b"\x0a" + bytes([len(body)]) + body)
    return b"".join(pieces)
