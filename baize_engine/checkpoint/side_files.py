"""The files beside the weights: config, generation config, tokenizer and licence texts of a result."""

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
SETTINGS = (TOKENIZER_CONFIG, MAP, ADDED)  # of them, what a finetune may have without the rest
LICENCE_WORDS = ("license", "licence", "notice", "use_policy", "copyright")
MAX_BYTES = 64 << 20  # of all: a tokenizer.json is some MB, and they are held in memory until the result is whole
MAX_LICENCE_NAME = 200  # bytes: "base_" and the writer's suffix go with it into the 255 that file systems take


def collect(tuned_like: Path, base: Path, dtype: str, vocab_size: int, follow_links: bool = False) -> dict[str, bytes]:
    """The side files of a result as {name: content}.

    Config and generation config are those of `tuned_like` (the diff, or the tuned model when a diff is made): bases of
    early converters carry wrong token ids. The tokenizer comes from one folder, `tuned_like` if it has one: mixed from two,
    its parts would disagree on added tokens. But what `tuned_like` itself says of these counts, and where it has
    tokenizer.json alone, a tokenizer.model of the same vocabulary comes along from the base. Licence texts come from both.
    `follow_links`: also what links out of its folder.
    """
    if not follow_links:
        refuse_link_elsewhere(tuned_like / "config.json")
    files = {"config.json": _config(tuned_like, dtype, vocab_size)}
    if is_file(tuned_like / "generation_config.json"):
        files["generation_config.json"] = _read(tuned_like / "generation_config.json", files, follow_links)
    files |= _tokenizer_files(tuned_like, base, files, follow_links)
    for folder, prefix in ((tuned_like, ""), (base, "base_")):
        with reading(folder):
            found = sorted(folder.iterdir())
        for path in found:
            if any(word in path.name.lower() for word in LICENCE_WORDS) and is_file(path):
                _check_licence_name(path)
                content = _read(path, files, follow_links)
                if files.get(path.name) != content:
                    files[prefix + path.name if path.name in files else path.name] = content
    return files


def _tokenizer_files(tuned_like: Path, base: Path, others: Mapping[str, bytes], follow_links: bool) -> dict[str, bytes]:
    """Those of a result. What a finetune says of its added tokens goes before what its base says."""
    source = tokenizer_folder(tuned_like, base)
    files = _read_named(source, TOKENIZER_FILES, others, follow_links)
    if source != tuned_like:
        own = _read_named(tuned_like, SETTINGS, {**others, **files}, follow_links)
        if own:
            files = {name: content for name, content in files.items() if name not in SETTINGS} | own
    model = model_for(source, [folder for folder in _tokenizer_folders(tuned_like, base) if folder != source])
    if model is not None and model.name not in files:
        files[model.name] = _read(model, {**others, **files}, follow_links)
        if not {ADDED, TOKENIZER_CONFIG} & files.keys():  # then tokenizer.json lists them, or nobody
            files |= _read_named(model.parent, (ADDED,), {**others, **files}, follow_links)
    return files


def read_beside(folder: Path) -> dict[str, bytes]:
    """{name: content} of what says how a model in `folder` is run and talked to."""
    return _read_named(folder, ("config.json", "generation_config.json", *TOKENIZER_FILES), {}, follow_links=True)


def _read_named(
    folder: Path, names: Sequence[str], others: Mapping[str, bytes], follow_links: bool
) -> dict[str, bytes]:
    """{name: content} of those that are there, which together with `others` stay within MAX_BYTES."""
    files: dict[str, bytes] = {}
    for path in (folder / name for name in names):
        if is_file(path):
            files[path.name] = _read(path, {**others, **files}, follow_links)
    return files


def _check_licence_name(path: Path) -> None:
    """The one kind of file that keeps a name of a stranger's choice."""
    if len(os.fsencode(path.name)) > MAX_LICENCE_NAME or not path.name.isprintable():
        raise CheckpointError(
            f"{path.parent}: a licence text is called {shown(path.name)!r}, wanted at most {MAX_LICENCE_NAME} bytes of "
            "printable characters"
        )


def tokenizer_folder(tuned_like: Path, base: Path) -> Path:
    """Where a result's tokenizer comes from."""
    for folder in _tokenizer_folders(tuned_like, base):
        if any(is_file(folder / name) for name in (MODEL, FAST)):
            return folder
    return base


def _tokenizer_folders(tuned_like: Path, base: Path) -> list[Path]:
    """In Meta's layout the tokenizer lies beside the folders of the models."""
    meta = [base.absolute().parent] if is_file(base / "params.json") else []
    return [tuned_like, base, *meta]


def _config(folder: Path, dtype: str, vocab_size: int) -> bytes:
    config = read_config(folder)
    config.pop("_name_or_path", None)  # a path on its author's machine
    spelt = [key for key in ("torch_dtype", "dtype") if key in config]  # by transformers 4, by transformers 5
    for key in spelt or ["torch_dtype"]:
        config[key] = dtype
    config["vocab_size"] = vocab_size
    text: list[str] = []
    size = 0
    for piece in json.JSONEncoder(indent=2).iterencode(config):
        size += len(piece)  # a stranger's lists in lists grow by their indents, to a thousand times the file
        if size > strict_json.MAX_BYTES:
            raise CheckpointError(
                f"{folder / 'config.json'}: more than {strict_json.MAX_BYTES} bytes when written with its indents"
            )
        text.append(piece)
    return ("".join(text) + "\n").encode()


def _read(path: Path, others: Mapping[str, bytes], follow_links: bool) -> bytes:
    """The file's bytes, which together with `others` stay within MAX_BYTES."""
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
    """What is copied goes into a result that may be published: a stranger's link must not bring a file of the user's there.

    Links within the folder, and those of the hub's cache, from snapshots/ID and below to blobs, are followed. Weights may be
    links to anywhere: they only count if they are weights.
    """
    with reading(path):
        folder, target = path.parent.resolve(), path.resolve()
    cache = next((above.parent / "blobs" for above in folder.parents if above.name == "snapshots"), folder)
    if not (target.is_relative_to(folder) or target.is_relative_to(cache)):
        raise CheckpointError(
            f"{path} is a link to {shown(str(target))}, outside its folder: if you want that file in the result, put a copy in "
            "its place (or --follow_links, for all such links)"
        )
