"""The files beside the weights: config, generation config, tokenizer and licence texts of a result."""

from __future__ import annotations

import json
import os
from pathlib import Path

from baize_engine.checkpoint.config_file import read_config
from baize_engine.checkpoint.file_io import open_regular
from baize_engine.checkpoint.os_errors import reading
from baize_engine.errors import CheckpointError

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
LICENCE_WORDS = ("license", "licence", "notice", "use_policy", "copyright")
MAX_BYTES = 64 << 20  # a tokenizer.json is some MB; anything larger is not a side file


def collect(tuned_like: Path, base: Path, dtype: str, vocab_size: int) -> dict[str, bytes]:
    """The side files of a result as {name: content}.

    Config and generation config are those of `tuned_like` (the diff, or the tuned model when a diff is made): bases of
    early converters carry wrong token ids. The tokenizer comes whole from one folder, `tuned_like` if it has one: mixed
    from two, its parts would disagree on added tokens. Licence texts come from both.
    """
    files = {"config.json": _config(read_config(tuned_like), dtype, vocab_size)}
    if (tuned_like / "generation_config.json").is_file():
        files["generation_config.json"] = _read(tuned_like / "generation_config.json")
    source = tokenizer_folder(tuned_like, base)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            files[name] = _read(source / name)
    for folder, prefix in ((tuned_like, ""), (base, "base_")):
        with reading(folder):
            found = sorted(folder.iterdir())
        for path in found:
            if path.is_file() and any(word in path.name.lower() for word in LICENCE_WORDS):
                content = _read(path)
                if files.get(path.name) != content:
                    files[prefix + path.name if path.name in files else path.name] = content
    return files


def tokenizer_folder(tuned_like: Path, base: Path) -> Path:
    """Where a result's tokenizer comes from, whole. In Meta's layout it lies beside the folders of the models."""
    meta = [base.absolute().parent] if (base / "params.json").is_file() else []
    for folder in (tuned_like, base, *meta):
        if any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
            return folder
    return base


def _config(raw: dict[str, object], dtype: str, vocab_size: int) -> bytes:
    config = {key: value for key, value in raw.items() if key != "_name_or_path"}  # a path on its author's machine
    for key in [key for key in ("torch_dtype", "dtype") if key in config] or [
        "torch_dtype"
    ]:  # as transformers 4 or 5 spell it
        config[key] = dtype
    config["vocab_size"] = vocab_size
    return (json.dumps(config, indent=2) + "\n").encode()


def _read(path: Path) -> bytes:
    _refuse_link_elsewhere(path)
    with reading(path), os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise CheckpointError(f"{path}: {size} bytes, wanted at most {MAX_BYTES} for a file beside the weights")
        content = file.read(MAX_BYTES)
    if content.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git-LFS pointer, not the file: run `git lfs pull` in its repository")
    return content


def _refuse_link_elsewhere(path: Path) -> None:
    """What is copied goes into a result that may be published: a stranger's link must not bring a file of the user's there.

    Links within the folder, and those of the hub's cache, from snapshots/ID to blobs, are followed. Weights may be links to
    anywhere: they only count if they are weights.
    """
    with reading(path):
        folder, target = path.parent.resolve(), path.resolve()
    cache = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    if not (target.is_relative_to(folder) or target.is_relative_to(cache)):
        raise CheckpointError(
            f"{path} is a link to {target}, outside its folder: if you want that file in the result, put a copy in its place"
        )
