"""Answers a file of prompts: passes its records to an engine, a window at a time, and writes each answer when it is ready."""

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

MODEL_SUFFIXES = {".json", ".safetensors", ".bin", ".pth", ".model", ".jinja"}  # no other file affects an answer

Request = tuple[list[int], SamplingParams]


def heads(path: Path, run: str, part: range | None = None) -> Iterator[str]:
    """The beginnings of the answer lines to all records in the file, or to those of the numbers in `part`."""
    return (head(record.index, record.content, run) for record in records(path, part))


def describe_run(sources: Sequence[Path], settings: dict[str, Any], default: SamplingParams) -> str:
    """Describes, as JSON, everything besides the record that determines an answer.

    sources, settings: as `describe_model` takes them. default: sampling parameters of records that give none. Later versions
    must describe the same run in the same way, because --resume compares digests of it.
    """
    return json.dumps({**describe_model(sources, settings), "params": asdict(default)}, sort_keys=True)


def describe_model(sources: Sequence[Path], settings: dict[str, Any]) -> dict[str, Any]:
    """Tells a model from others, as JSON.

    sources: the model's folders; the name, size and modification time of their files count. settings: how the model was loaded.
    """
    files = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for folder in sources
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.suffix in MODEL_SUFFIXES and path.is_file()
    ]
    return {"files": files, "settings": settings}


def answer(
    engine: Engine,
    path: Path,
    answers: AnswerFile | AnswerStream,
    run: str,
    options: BatchOptions,
    progress: Callable[[int, int], None],
    part: range | None = None,
) -> None:
    """Answers the records in the file `path` that have no answer yet: all but the first `answers.done`.

    A record that cannot be served gets its error as its answer, and does not stop the others. Answers are written in order,
    each as soon as it is complete. run: the description that `describe_run` returns, for the digests. progress: called with
    the numbers of (records, tokens) completed since the last call. part: the numbers of the records that `answers` is for;
    None for all.
    """
    left = islice(records(path, part), answers.done, None)
    while batch := list(islice(left, options.window)):
        for record, found in zip(batch, _answers(engine, batch, options), strict=True):
            line = _line(record, found, options.extra_columns == "keep")
            answers.append(head(record.index, record.content, run), line)
            progress(1, sum(len(each.token_ids) for each in found) if isinstance(found, list) else 0)


def _answers(engine: Engine, batch: Sequence[Record], options: BatchOptions) -> Iterator[list[Completion] | BaizeError]:
    """Yields each record's completions, or the error that it has instead, in order."""
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
