"""Can a model speak with the tokenizer files that it has? Told before a result is written, and of one that is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
from baize_engine.checkpoint.tokenizer_model import FAST, MODEL, pieces
from baize_engine.errors import CheckpointError


def tokenizer_problems(contents: Mapping[str, bytes], rows: int, folder: Path) -> list[str]:
    """What keeps a model of `rows` vocabulary rows from speaking, or its rows from being tokens, one sentence each.

    `contents`: {name: content} of the files beside its weights, which messages name as of `folder`.
    """
    if MODEL not in contents:
        if FAST in contents:
            return [
                f"{folder} has {FAST} without {MODEL}, so that the model takes token ids only: put the {MODEL} of the same "
                "vocabulary beside it"
            ]
        return [f"{folder} has no tokenizer, so that the model takes token ids only: put its {MODEL} beside it"]
    try:
        known = len(pieces(contents[MODEL], str(folder / MODEL)))
        added = TokenizerFiles.of(contents, folder).added(known, None)
    except CheckpointError as error:
        return [f"{error}: the model cannot speak"]
    ids = {token_id for token_id, _ in added.values()}
    beyond = sorted(text for text, (token_id, _) in added.items() if token_id >= rows)
    found = []
    if known > rows:
        found.append(f"{folder / MODEL} has {known} pieces, and the model {rows} rows: it is another model's tokenizer")
    elif beyond:
        found.append(
            f"{folder}: {len(beyond)} added token(s), such as {beyond[0]!r}, have ids beyond the model's {rows} rows, and are "
            "read as plain text"
        )
    missing = rows - known - len([token_id for token_id in ids if token_id < rows])
    if missing > 0:
        found.append(
            f"{folder}: the model has {rows} rows and its tokenizer {rows - missing} tokens: {missing} row(s) stand for no text"
        )
    return found
