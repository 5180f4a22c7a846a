"""Prompts of tasks that open-instruct's own evaluation (7c5ee77a1) made, run with stand-ins for models.

tests/evaluation/golden/TASK_FORMAT.txt: the prompts for the made-up data in golden/data, with lines of "=====" between them.
The SHA-256 sums in the tests are of the prompts that it made for the published data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from assets import REPO

GOLDEN = REPO / "tests/evaluation/golden"
DATA = GOLDEN / "data"


class ByteEncoder:
    """A tokenizer whose ids are the text's bytes, after 256 for the begin and 257 for the space in front."""

    def encode(self, text: str, add_bos: bool | None = None) -> list[int]:
        return [256] * (add_bos is not False) + [257, *text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode()


def golden_prompts(task: str, chat: bool) -> list[str]:
    text = (GOLDEN / f"{task}_{'chat' if chat else 'raw'}.txt").read_text()
    return text.removesuffix("\n").split("\n=====\n")


def digest(prompts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(prompts).encode()).hexdigest()


def in_lines(path: Path, lines: Iterable[str]) -> Path:
    """Writes a file of lines, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
