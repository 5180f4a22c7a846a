"""The answers of all shards of a run as one output, with the bytes that one run over the whole input would have written.

Nothing is written before every shard was found complete. Memory holds a line at a time. Knows no input and no model.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from baize_engine.batch.shards import Shard, ShardHeader, shard_files
from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.file_io import opened
from baize_engine.checkpoint.os_errors import writing
from baize_engine.checkpoint.output_file import sync_folder
from baize_engine.checkpoint.output_folder import PARTIAL
from baize_engine.errors import CheckpointError, OutputError

PIECE = 1 << 20  # bytes that are copied at a time


@dataclass(frozen=True)
class Answers:
    """The answers in a shard's complete file: bytes [begin, end), in `records` lines, of which `failed` are errors."""

    path: Path
    begin: int
    end: int
    records: int
    failed: int


def complete_shards(folder: Path) -> list[Answers]:
    """Checks that the folder has all shards of one run, each complete, and returns what they hold, in order.

    Raises OutputError, which names the shard, its records and what to do, where one is missing, incomplete, or of another
    input, model or options than the first; CheckpointError where a file cannot be read, or was edited.
    """
    files = shard_files(folder)
    headers = {shard: header for shard, path in files.items() if (header := ShardHeader.read(path))}
    if not headers:
        wanted = f"what generate --input FILE --output {folder} --shard I/N writes"
        raise OutputError(errno.ENOENT, f"{folder} holds no answers of shards, wanted {wanted}")
    first = next(iter(headers.values()))
    for shard, header in headers.items():
        first.check_same_run(files[shard], header, files[first.shard].name)
    every = [Shard(number + 1, first.shard.shards) for number in range(first.shard.shards)]
    for shard in every:
        if shard not in headers:
            raise _incomplete(folder, shard, shard.part(first.survey.records), 0)
    return [_read(folder, files[shard], headers[shard]) for shard in every]


def _read(folder: Path, path: Path, header: ShardHeader) -> Answers:
    part, done, failed = header.part, 0, 0
    with opened(path) as file:
        begin = end = len(file.readline())
        for raw in file:
            if not raw.endswith(b"\n"):
                break  # cut short, or being written
            line = strict_json.whole_line(raw)
            if done == len(part) or line.get("index") != part[done] or line.keys().isdisjoint(("completions", "error")):
                wanted = f"the answer to record {part[done]}" if done < len(part) else "the end"
                raise CheckpointError(f"{path}: line {done + 2} is not {wanted}: was it edited?")
            done += 1
            failed += "error" in line
            end += len(raw)
    if done < len(part):
        raise _incomplete(folder, header.shard, part, done)
    return Answers(path, begin, end, done, failed)


def _incomplete(folder: Path, shard: Shard, part: range, done: int) -> OutputError:
    has = f"has answers to {done} of" if done else "is missing:"
    records = f"records {part.start} to {part.stop - 1}" if part else "no records"
    return OutputError(
        errno.ENOENT,
        f"{folder}: shard {shard} ({shard.file_name}) {has} {records}; its command with --shard {shard} --resume completes it",
    )


def pieces(shards: Sequence[Answers]) -> Iterator[bytes]:
    """Yields the answers' bytes, in order. Raises CheckpointError where a file is shorter than when it was checked."""
    for answers in shards:
        with opened(answers.path) as file:
            file.seek(answers.begin)
            left = answers.end - answers.begin
            while left:
                piece = file.read(min(PIECE, left))
                if not piece:
                    raise CheckpointError(f"{answers.path} lost its last {left} bytes while it was being copied")
                yield piece
                left -= len(piece)


def write_answers(shards: Sequence[Answers], path: Path) -> None:
    """Writes the answers to a new file, which gets its name when all of it is on the disk.

    Raises OutputError, and leaves nothing, where the file exists, another merge is writing it, or it cannot be written.
    """
    partial = path.with_name(path.name + PARTIAL)
    _refuse_existing(path)
    try:
        with writing(partial):
            file = open(partial, "xb")  # noqa: SIM115  closed below
    except OutputError as error:
        if error.errno != errno.EEXIST:
            raise
        raise OutputError(
            errno.EEXIST,
            f"{partial} exists: another merge is writing it, or was killed; if it was killed, remove the file",
        ) from None
    try:
        with file:
            _fill(file, shards, partial)
        _refuse_existing(path)  # once more: it may have come while this was written
        with writing(partial, f"be renamed to {path.name}"):
            os.rename(partial, path)
    except BaseException:
        with suppress(FileNotFoundError):
            partial.unlink()
        raise
    sync_folder(path.parent)


def _fill(file: BinaryIO, shards: Sequence[Answers], partial: Path) -> None:
    with writing(partial):
        file.writelines(pieces(shards))
        file.flush()
        os.fsync(file.fileno())


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise OutputError(errno.EEXIST, f"{path} exists: name another --output")
