"""The files beside a result's weights: config, generation config, tokenizer and licence texts.

`collect` reads them; `result_problems` says whether the engine will run a result with them, and a user can talk to it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.config_file import check_runnable, normalise, read_config
from baize_engine.checkpoint.file_io import opened
from baize_engine.checkpoint.os_errors import is_file, reading
from baize_engine.checkpoint.tokenizer_files import ADDED, SETTINGS, TEMPLATE, TOKENIZER_CONFIG, TokenizerFiles
from baize_engine.checkpoint.vocabulary_files import FAST, MODEL, model_for, pieces, token_count, why_not_fast
from baize_engine.errors import BaizeError, CheckpointError
from baize_engine.printable import shown

CONFIG, GENERATION = "config.json", "generation_config.json"
# a finetune may have the settings without the others
TEMPLATES = (TEMPLATE, "chat_template.json")
TOKENIZER_FILES = (MODEL, FAST, *SETTINGS, *TEMPLATES)
LICENCE_WORDS = ("license", "licence", "notice", "use_policy", "copyright")
MAX_BYTES = 64 << 20  # of all side files, held in memory until the result is complete; a tokenizer.json has a few MB
MAX_LICENCE_NAME = 200  # bytes: leaves room for "base_" and the writer's suffix in the 255 of file systems


def collect(tuned_like: Path, base: Path, dtype: str, vocab_size: int, follow_links: bool = False) -> dict[str, bytes]:
    """Collect the side files of a result as {name: content}.

    Config and generation config come from `tuned_like`, because bases of early converters have wrong token ids. The tokenizer
    comes from one folder, `tuned_like` if it has one, because parts of two would disagree on added tokens; but the settings of
    `tuned_like` are used in any case, its chat template with them, and if it has only tokenizer.json, a tokenizer.model of
    the same vocabulary is taken from the base. Licence texts come from both.

    tuned_like: the folder of the diff, or of the finetuned model when a diff is made.
    dtype, vocab_size: of the result, for its config.
    follow_links: also copy links that lead out of their folder.
    Raises CheckpointError if a file is broken, too large or such a link.
    """
    if not follow_links:
        refuse_link_elsewhere(tuned_like / CONFIG)
    files = {CONFIG: _config(tuned_like, dtype, vocab_size)}
    _add(files, tuned_like / GENERATION, follow_links)
    beside = [base.absolute().parent] if is_file(base / "params.json") else []  # where Meta's layout has the tokenizer
    folders = [tuned_like, base, *beside]
    source = next((folder for folder in folders if any(is_file(folder / name) for name in (MODEL, FAST))), base)
    own = any(is_file(tuned_like / name) for name in SETTINGS)  # take precedence over the base's
    own_chat = own or any(is_file(tuned_like / name) for name in TEMPLATES)  # the base was asked in another format
    for name in TOKENIZER_FILES:
        of_tuned = (name in SETTINGS and own) or (name in TEMPLATES and own_chat)
        _add(files, (tuned_like if of_tuned else source) / name, follow_links)
    model = model_for(source, [folder for folder in folders if folder != source])
    if model is not None and MODEL not in files:
        _add(files, model, follow_links)
        if not {ADDED, TOKENIZER_CONFIG} & files.keys():  # otherwise only tokenizer.json could list added tokens
            _add(files, model.parent / ADDED, follow_links)
    for folder, prefix in ((tuned_like, ""), (base, "base_")):
        with reading(folder):
            paths = sorted(folder.iterdir())
        for path in paths:
            if any(word in path.name.lower() for word in LICENCE_WORDS) and is_file(path):
                # the name is untrusted
                if len(os.fsencode(path.name)) > MAX_LICENCE_NAME or not path.name.isprintable():
                    wanted = f"at most {MAX_LICENCE_NAME} bytes of printable characters"
                    raise CheckpointError(f"{folder}: a licence text is called {shown(path.name)!r}, wanted {wanted}")
                content = _read(path, files, follow_links)
                if files.get(path.name) != content:
                    files[prefix + path.name if path.name in files else path.name] = content
    return files


def read_beside(folder: Path) -> dict[str, bytes]:
    """Read the config and tokenizer files of a model in `folder` as {name: content}."""
    files: dict[str, bytes] = {}
    for name in (CONFIG, GENERATION, *TOKENIZER_FILES):
        _add(files, folder / name, follow_links=True)
    return files


def _add(files: dict[str, bytes], path: Path, follow_links: bool) -> None:
    """Add the content of `path`, if it exists, to `files`. Errors as for `_read`."""
    if is_file(path):
        files[path.name] = _read(path, files, follow_links)


def _config(folder: Path, dtype: str, vocab_size: int) -> bytes:
    """The config.json of `folder` with another dtype and vocab_size."""
    config = read_config(folder)
    config.pop("_name_or_path", None)  # a path on its author's machine
    dtype_keys = [key for key in ("torch_dtype", "dtype") if key in config]  # transformers 4's, transformers 5's
    for key in dtype_keys or ["torch_dtype"]:
        config[key] = dtype
    config["vocab_size"] = vocab_size
    text: list[str] = []
    size = 0
    for piece in json.JSONEncoder(indent=2).iterencode(config):
        size += len(piece)  # indents can make hostile nested lists a thousand times as large as the file
        if size > strict_json.MAX_BYTES:
            where = folder / CONFIG
            raise CheckpointError(f"{where}: more than {strict_json.MAX_BYTES} bytes when written with its indents")
        text.append(piece)
    return ("".join(text) + "\n").encode()


def _read(path: Path, others: Mapping[str, bytes], follow_links: bool) -> bytes:
    """Read a file. CheckpointError if it and `others` together exceed MAX_BYTES, or it is a link that is not followed."""
    if not follow_links:
        refuse_link_elsewhere(path)
    room = MAX_BYTES - sum(map(len, others.values()))
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > room:
            wanted = f"at most {MAX_BYTES} for all files beside the weights ({room} are left)"
            raise CheckpointError(f"{path}: {size} bytes, wanted {wanted}")
        return file.read(room)


def refuse_link_elsewhere(path: Path) -> None:
    """Raise CheckpointError if `path` links out of its folder.

    A result may be published, and a stranger's link must not bring a private file of the user into it. Links within the folder
    are fine, and so are those of the hub's cache, from snapshots/ID and below to blobs. Weights may be links to anywhere, since
    only weights are read through them.
    """
    with reading(path):
        folder, target = path.parent.resolve(), path.resolve()
    cache = next((above.parent / "blobs" for above in folder.parents if above.name == "snapshots"), folder)
    if not (target.is_relative_to(folder) or target.is_relative_to(cache)):
        remedy = "replace the link with a copy (or use --follow_links, for all such links)"
        where = f"{path} is a link to {shown(str(target))}, outside its folder"
        raise CheckpointError(f"{where}: if you want that file in the result, {remedy}")


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
        if FAST not in contents:
            return [f"{folder} has no tokenizer, so the model takes token ids only: put its {MODEL} beside it"]
        if reason := why_not_fast():
            return [f"{folder} has {FAST} without {MODEL}: {reason}"]
        count = token_count(contents[FAST])
        if count is None or count == rows:
            return []
        found = f"{folder / FAST} has {count} tokens, and the model {rows} rows"
        if count > rows:
            return [f"{found}: it is another model's tokenizer, or tokens beyond the rows are read as plain text"]
        return [f"{found}: {rows - count} row(s) stand for no text"]
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
