"""Whether the engine will run a result and a user can talk to it, checked before it is written or afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.config_file import check_runnable, normalise
from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
from baize_engine.checkpoint.tokenizer_model import FAST, MODEL, pieces
from baize_engine.errors import BaizeError, CheckpointError

CONFIG, GENERATION = "config.json", "generation_config.json"


def result_problems(
    contents: Mapping[str, bytes], rows: int, layers: int, stored: Sequence[str], folder: Path
) -> list[str]:
    """What keeps the engine from running a result, or a user from talking to it, one sentence each.

    contents: {name: content} of the files beside the weights; messages name them as files of `folder`.
    rows, layers: vocabulary rows and decoder layers of the weights.
    stored: names of tensors in the result that its base lacks.
    """
    reasons = tokenizer_problems(contents, rows, folder)
    try:
        config = normalise(strict_json.parse(contents.get(CONFIG, b"{}"), str(folder / CONFIG), strict=False))
        check_runnable(config)
        if config["num_hidden_layers"] != layers:
            found = f"its config says {config['num_hidden_layers']} layers, and the weights have {layers}"
            reasons.append(f"{folder}: {found}: this engine will not run it")
        elif stored:
            more = " and others" if len(stored) > 1 else ""
            reasons.append(f"{folder}: this engine has no use for {stored[0]}{more}, and will not run it")
        if GENERATION in contents:
            strict_json.parse(contents[GENERATION], str(folder / GENERATION), strict=False)
    except BaizeError as error:
        reasons.append(f"{folder}: this engine will not run it; {error}")
    return reasons


def tokenizer_problems(contents: Mapping[str, bytes], rows: int, folder: Path) -> list[str]:
    """What keeps a model of `rows` vocabulary rows from turning text into ids and back, one sentence each.

    contents, folder: as in `result_problems`.
    """
    if MODEL not in contents:
        found, wanted = "no tokenizer", f"its {MODEL}"
        if FAST in contents:
            found, wanted = f"{FAST} without {MODEL}", f"the {MODEL} of the same vocabulary"
        return [f"{folder} has {found}, so the model takes token ids only: put {wanted} beside it"]
    try:
        known = len(pieces(contents[MODEL], str(folder / MODEL)))
        added = TokenizerFiles.of(contents, folder).added(known, None)
    except CheckpointError as error:
        return [f"{error}: the model takes token ids only"]
    ids = {token_id for token_id, _ in added.values()}
    beyond = sorted(text for text, (token_id, _) in added.items() if token_id >= rows)
    problems = []
    if known > rows:
        found = f"{known} pieces, and the model {rows} rows"
        problems.append(f"{folder / MODEL} has {found}: it is another model's tokenizer")
    elif beyond:
        found = f"{len(beyond)} added token(s), such as {beyond[0]!r}, have ids beyond the model's {rows} rows"
        problems.append(f"{folder}: {found}, and are read as plain text")
    missing = rows - known - sum(token_id < rows for token_id in ids)
    if missing > 0:
        found = f"the model has {rows} rows and its tokenizer {rows - missing} tokens"
        problems.append(f"{folder}: {found}: {missing} row(s) stand for no text")
    return problems
