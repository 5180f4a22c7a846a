"""Stand-ins for the decode loop's neighbours: a decoder without weights, a cache that counts, byte and small tokenizers."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from functools import cache

import sentencepiece
import torch

from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
from baize_engine.generation.sequence import Sequence
from baize_engine.model.prompt_runner import PromptPiece
from baize_engine.text.incremental import Rules

EOS = 2
FIRST_BYTE = 3  # ids below it: unknown, begin, end
VOCAB = FIRST_BYTE + 256


class FakeCache:
    """Blocks of 4 positions without memory: the fake decoders know a sequence by its length and its last token."""

    block_size = chunk = 4

    def __init__(self, num_blocks: int = 64) -> None:
        self.num_blocks = num_blocks
        self.moved: list[str] = []

    def copy_block(self, source: int, target: int) -> None:
        self.moved.append("copied")

    def swap_out(self, number: int, blocks: Iterable[int]) -> None:
        self.moved.append("out")

    def swap_in(self, number: int, kept: int, blocks: Iterable[int]) -> None:
        self.moved.append("in")

    def forget(self, number: int) -> None:
        self.moved.append("forgotten")


class FakeBatch:
    """Sequences that step together through a decoder's `forward`; the host chooses all tokens."""

    ahead = 0

    def __init__(self, decoder: TableDecoder, cache: FakeCache) -> None:
        self.decoder, self.cache = decoder, cache
        self.sequences: list[Sequence] = []
        self.tokens: dict[Sequence, int] = {}
        self.step: tuple[list[Sequence], torch.Tensor] | None = None
        self.found = torch.empty(0)

    @property
    def in_flight(self) -> int:
        return int(self.step is not None)

    def add(self, sequence: Sequence) -> None:
        sequence.row, sequence.on_host = 0, True
        self.sequences.append(sequence)
        self.tokens[sequence] = sequence.token_ids[-1]

    def drop(self, sequence: Sequence) -> None:
        self.sequences.remove(sequence)
        sequence.row = -1

    def reset(self) -> None:
        for sequence in self.sequences:
            sequence.row = -1
        self.sequences, self.step = [], None

    def launch(self) -> None:
        before = [sequence.num_cached for sequence in self.sequences]
        logits = self.decoder.forward([[self.tokens[one]] for one in self.sequences], self.sequences)
        for sequence, length in zip(self.sequences, before, strict=True):
            sequence.num_cached = length  # it grows when the token is read
        self.step = list(self.sequences), logits

    def read(self) -> list[tuple[Sequence, int]]:
        assert self.step is not None
        (sequences, self.found), self.step = self.step, None
        return [(sequence, -1) for sequence in sequences]

    def logits(self, sequences: list[Sequence]) -> torch.Tensor:
        assert sequences == self.sequences
        return self.found

    def set_token(self, sequence: Sequence, token: int) -> None:
        self.tokens[sequence] = token


class TableDecoder:
    """Logits from a seeded table by the last token and its position: the same for the same history end, always."""

    prefill_chunk = 16
    together = True

    def __init__(self, vocab: int = 40, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(7, vocab, vocab, generator=generator) * 2
        self.fail_at: int | None = None  # a position whose logits get a NaN
        self.calls: list[int] = []  # tokens fed by each call, and for each row of a step
        self.taken = 0  # positions of prompts whose logits were asked for

    def run(self, pieces: list[PromptPiece]) -> None:
        for piece in pieces:
            last = piece.sequence.num_cached + len(piece.ids) - 1
            for ids in [piece.ids] if piece.first >= last else [[token] for token in piece.ids]:
                logits = self.forward([ids], [piece.sequence])
                if (position := piece.sequence.num_cached - 1) >= piece.first:
                    self.taken += 1
                    piece.take(position, logits)

    def forward(self, token_ids: list[list[int]], sequences: list[Sequence]) -> torch.Tensor:
        rows = []
        for ids, sequence in zip(token_ids, sequences, strict=True):
            sequence.num_cached += len(ids)
            assert len(sequence.block_table) * FakeCache.block_size >= sequence.num_cached
            self.calls.append(len(ids))
            rows.append(self.logits(sequence.num_cached, ids[-1]))
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
        self.calls, self.taken = [], 0

    def logits(self, length: int, token: int) -> torch.Tensor:
        row, step = torch.zeros(self.vocab), length - self.prompt_length
        row[self.script[step] if 0 <= step < len(self.script) else EOS] = 10.0
        return row


class ByteTokenizer:
    """One id per byte of UTF-8, no dummy space: enough for everything that takes a tokenizer."""

    bos_id = 1
    eos_id = EOS
    vocab_size = VOCAB
    files = TokenizerFiles()
    rules = Rules()
    special_tokens = ()

    def encode(self, text: str, add_bos: bool | None = None, **_: bool) -> list[int]:
        return [self.bos_id] * (add_bos is not False) + [FIRST_BYTE + byte for byte in text.encode()]

    def piece(self, token_id: int) -> str | bytes:
        return "" if token_id < FIRST_BYTE else bytes([token_id - FIRST_BYTE])

    def decode(self, ids: list[int]) -> str:
        return bytes(i - FIRST_BYTE for i in ids if i >= FIRST_BYTE).decode(errors="replace")


# what small_model was trained on
WORDS = [
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


@cache
def small_model(**changes: object) -> bytes:
    """A sentencepiece model trained on the spot in LLaMA's settings: BPE, byte fallback, no normalisation."""
    lines = [" ".join(WORDS[(i * k + j) % len(WORDS)] for j in range(9)) for i in range(40) for k in (1, 3, 7)]
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
