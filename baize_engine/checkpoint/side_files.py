"""The files beside a result's weights: config, generation config, tokenizer and licence texts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.config_file import read_config
from baize_engine.checkpoint.entry import refuse_pointer
from baize_engine.checkpoint.file_io import open_regular
from baize_engine.checkpoint.os_errors import is_file, reading
from baize_engine.checkpoint.tokenizer_files import ADDED, MAP, TOKENIZER_CONFIG
from baize_engine.checkpoint.tokenizer_model import FAST, MODEL, model_for
from baize_engine.errors import CheckpointError
from baize_engine.printable import shown

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
SETTINGS = (TOKENIZER_CONFIG, MAP, ADDED)  # tokenizer files that a finetune may have without the others
LICENCE_WORDS = ("license", "licence", "notice", "use_policy", "copyright")
MAX_BYTES = 64 << 20  # of all side files, held in memory until the result is complete; a tokenizer.json has a few MB
MAX_LICENCE_NAME = 200  # bytes: leaves room for "base_" and the writer's suffix in the 255 of file systems


def collect(tuned_like: Path, base: Path, dtype: str, vocab_size: int, follow_links: bool = False) -> dict[str, bytes]:
    """Collect the side files of a result as {name: content}.

    Config and generation config come from `tuned_like`, because bases of early converters have wrong token ids. The tokenizer
    comes from one folder, `tuned_like` if it has one, because parts of two would disagree on added tokens; but the settings of
    `tuned_like` are used in any case, and if it has only tokenizer.json, a tokenizer.model of the same vocabulary is taken
    from the base. Licence texts come from both.

    tuned_like: the folder of the diff, or of the tuned model when a diff is made.
    dtype, vocab_size: of the result, for its config.
    follow_links: also copy links that lead out of their folder.
    Raises CheckpointError if a file is broken, too large or such a link.
    """
    if not follow_links:
        refuse_link_elsewhere(tuned_like / "config.json")
    files = {"config.json": _config(tuned_like, dtype, vocab_size)}
    if is_file(tuned_like / "generation_config.json"):
        files["generation_config.json"] = _read(tuned_like / "generation_config.json", files, follow_links)
    files |= _tokenizer_files(tuned_like, base, files, follow_links)
    for folder, prefix in ((tuned_like, ""), (base, "base_")):
        with reading(folder):
            paths = sorted(folder.iterdir())
        for path in paths:
            if any(word in path.name.lower() for word in LICENCE_WORDS) and is_file(path):
                _check_licence_name(path)
                content = _read(path, files, follow_links)
                if files.get(path.name) != content:
                    files[prefix + path.name if path.name in files else path.name] = content
    return files


def _tokenizer_files(tuned_like: Path, base: Path, others: Mapping[str, bytes], follow_links: bool) -> dict[str, bytes]:
    """The tokenizer files of a result. A finetune's own settings take precedence over its base's."""
    source = tokenizer_folder(tuned_like, base)
    files = _read_named(source, TOKENIZER_FILES, others, follow_links)
    if source != tuned_like:
        own = _read_named(tuned_like, SETTINGS, {**others, **files}, follow_links)
        if own:
            files = {name: content for name, content in files.items() if name not in SETTINGS} | own
    model = model_for(source, [folder for folder in _tokenizer_folders(tuned_like, base) if folder != source])
    if model is not None and model.name not in files:
        files[model.name] = _read(model, {**others, **files}, follow_links)
        if not {ADDED, TOKENIZER_CONFIG} & files.keys():  # otherwise only tokenizer.json could list added tokens
            files |= _read_named(model.parent, (ADDED,), {**others, **files}, follow_links)
    return files


def read_beside(folder: Path) -> dict[str, bytes]:
    """Read the config and tokenizer files of a model in `folder` as {name: content}."""
    return _read_named(folder, ("config.json", "generation_config.json", *TOKENIZER_FILES), {}, follow_links=True)


def _read_named(
    folder: Path, names: Sequence[str], others: Mapping[str, bytes], follow_links: bool
) -> dict[str, bytes]:
    """Read those of `names` that exist as {name: content}. CheckpointError if they and `others` exceed MAX_BYTES."""
    files: dict[str, bytes] = {}
    for path in (folder / name for name in names):
        if is_file(path):
            files[path.name] = _read(path, {**others, **files}, follow_links)
    return files


def _check_licence_name(path: Path) -> None:
    """Raise CheckpointError unless the name is short and printable: licence texts keep the names that strangers chose."""
    if len(os.fsencode(path.name)) > MAX_LICENCE_NAME or not path.name.isprintable():
        raise CheckpointError(
            f"{path.parent}: a licence text is called {shown(path.name)!r}, wanted at most {MAX_LICENCE_NAME} bytes of "
            "printable characters"
        )


def tokenizer_folder(tuned_like: Path, base: Path) -> Path:
    """The folder that a result's tokenizer comes from."""
    for folder in _tokenizer_folders(tuned_like, base):
        if any(is_file(folder / name) for name in (MODEL, FAST)):
            return folder
    return base


def _tokenizer_folders(tuned_like: Path, base: Path) -> list[Path]:
    """Folders that may have the tokenizer, the likeliest first. In Meta's layout it lies beside the models' folders."""
    meta = [base.absolute().parent] if is_file(base / "params.json") else []
    return [tuned_like, base, *meta]


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
            raise CheckpointError(
                f"{folder / 'config.json'}: more than {strict_json.MAX_BYTES} bytes when written with its indents"
            )
        text.append(piece)
    return ("".join(text) + "\n").encode()


def _read(path: Path, others: Mapping[str, bytes], follow_links: bool) -> bytes:
    """Read a file. CheckpointError if it and `others` together exceed MAX_BYTES, or it is a link that is not followed."""
    if not follow_links:
        refuse_link_elsewhere(path)
    room = MAX_BYTES - sum(map(len, others.values()))
    with reading(path), os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > room:
            raise CheckpointError(
                f"{path}: {size} bytes, wanted at most {MAX_BYTES} for all files beside the weights ({room} are left)"
            )
        content = file.read(room)
    refuse_pointer(path, content)
    return content


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
        raise CheckpointError(
            f"{path} is a link to {shown(str(target))}, outside its folder: if you want that file in the result, replace the "
            "link by a copy (or use --follow_links, for all such links)"
        )
