"""Which tokenizer a folder has: tokenizer.model is served by sentencepiece, tokenizer.json alone by the tokenizers library.

A folder that has both gets sentencepiece's ids, which its model was trained with. The library is an extra, and imported only
for a folder that needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from baize_engine.checkpoint.file_io import read_whole
from baize_engine.checkpoint.os_errors import is_file
from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
from baize_engine.checkpoint.vocabulary_files import FAST, MAX_FAST, MAX_MODEL, MODEL, why_not_fast
from baize_engine.text.tokenizer import Tokenizer


def tokenizer_of(folder: Path, rows: int | None = None) -> Tokenizer | None:
    """The tokenizer of `folder`; None if there is none that can be used, for the reason that `why_none` gives.

    rows: ids that the model has (rows of its embedding); None: one for each token. CheckpointError names a broken file.
    """
    if why_none(folder):
        return None
    name, most = (MODEL, MAX_MODEL) if is_file(folder / MODEL) else (FAST, MAX_FAST)
    return _made(name, read_whole(folder / name, most), TokenizerFiles.read(folder), rows)


def tokenizer_in(contents: Mapping[str, bytes], folder: Path, rows: int | None = None) -> Tokenizer | None:
    """As `tokenizer_of`, for files that are given as {name: content}; errors name them as files of `folder`."""
    name = MODEL if MODEL in contents else FAST
    if name not in contents or (name == FAST and why_not_fast()):
        return None
    return _made(name, contents[name], TokenizerFiles.of(contents, folder), rows)


def why_none(folder: Path) -> str | None:
    """Why `tokenizer_of` finds no tokenizer in `folder`; None if it finds one."""
    if is_file(folder / MODEL):
        return None
    if is_file(folder / FAST):
        missing = why_not_fast()
        return f"{folder}: has {FAST} and no {MODEL}; {missing}" if missing else None
    return f"{folder / MODEL}: absent, wanted a sentencepiece model, or {FAST}"


def _made(name: str, content: bytes, files: TokenizerFiles, rows: int | None) -> Tokenizer:
    if name == MODEL:
        from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer

        return SentencePieceTokenizer.parse(content, files, rows)
    from baize_engine.text.fast_tokenizer import FastTokenizer

    return FastTokenizer(content, files, rows)
