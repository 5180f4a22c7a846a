"""Answers a file of prompts: gives its records to an engine, window by window, and writes the completions as they come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from baize_engine.batch.options import BatchOptions
from baize_engine.batch.output import AnswerFile, AnswerStream, head
from baize_engine.batch.records import Record, json_message, records
from baize_engine.engine import Completion, Engine
from baize_engine.errors import BaizeError
from baize_engine.generation.params import SamplingParams

MODEL_SUFFIXES = {".json", ".safetensors", ".bin", ".pth", ".model"}  # others may change without changing an answer

Request = tuple[list[int], SamplingParams]


def heads(path: Path, run: str) -> Iterator[str]:
    """How the answer lines of all records of the file begin."""
    return (head(record.index, record.content, run) for record in records(path))


def describe_run(sources: Sequence[Path], settings: dict[str, Any], default: SamplingParams) -> str:
    """What decides about answers beside the record, as JSON.

    sources: the model's folders, of whose files name, size and time count. settings: how the model is held. default: parameters
    of records that name none. The same run must have the same description in later versions: --resume compares digests of it.
    """
    files = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for folder in sources
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.suffix in MODEL_SUFFIXES and path.is_file()
    ]
    return json.dumps({"files": files, "settings": settings, "params": asdict(default)}, sort_keys=True)


def answer(
    engine: Engine,
    path: Path,
    answers: AnswerFile | AnswerStream,
    run: str,
    options: BatchOptions,
    progress: Callable[[int, int], None],
) -> None:
    """Answers the records of the file `path` that have no answer yet, those from number answers.done on.

    A record that cannot be served is answered by its error, and the others go on. An answer is written as soon as it and all
    before it are made. run: what `describe_run` says, for the digests. progress: called with the (records, tokens) that were
    made since the last call.
    """
    left = islice(records(path), answers.done, None)
    while batch := list(islice(left, options.window)):
        for record, found in zip(batch, _answers(engine, batch, options), strict=True):
            line = _line(record, found, options.extra_columns == "keep")
            answers.append(head(record.index, record.content, run), line)
            progress(1, sum(len(each.token_ids) for each in found) if isinstance(found, list) else 0)


def _answers(engine: Engine, batch: Sequence[Record], options: BatchOptions) -> Iterator[list[Completion] | BaizeError]:
    """Each record's completions, or why it has none, as they come."""
    found: list[Request | BaizeError] = []
    for record in batch:
        try:
            found.append(_request(engine, record, options))
        except BaizeError as error:
            found.append(error)
    good = [request for request in found if not isinstance(request, BaizeError)]
    prompts, params = [ids for ids, _ in good], [one for _, one in good]
    made = engine.completions(prompts, params, raise_errors=False) if good else iter(())
    for each in found:
        if isinstance(each, BaizeError):
            yield each
        else:
            completions = next(made)
            yield next((one.error for one in completions if one.error is not None), completions)


def _request(engine: Engine, record: Record, options: BatchOptions) -> Request:
    kind, value, params = record.request(options.params, options.extra_columns)
    text = record.text_options(options.text)
    prompt = engine.chat_ids(value) if kind == "messages" else value
    return engine.encode(prompt, params, parse_special=text.parse_special, add_bos=text.add_bos), params


def _line(record: Record, found: list[Completion] | BaizeError, keep: bool) -> dict[str, Any]:
    line: dict[str, Any] = {} if record.id is None else {"id": record.id}
    if "meta" in record.values:
        line["meta"] = record.values["meta"]
    if keep and record.extra:
        line["extra"] = record.extra
    if isinstance(found, BaizeError):
        return {**line, "error": f"line {record.line}: {json_message(found)}"}
    return {**line, "completions": [_completion(each) for each in found]}


def _completion(done: Completion) -> dict[str, Any]:
    values = {
        name: getattr(done, name) for name in ("index", "text", "finish_reason", "stop_reason", "seed", "token_ids")
    }
    if done.logprobs is not None:
        values["logprobs"] = [asdict(each) for each in done.logprobs]
    return values
