"""A file of prompts that is answered in parts, on machines that share nothing: which part a shard has, and the file it writes.

Shard I of N, counted from 1, answers a contiguous part of the records into `shard-I-of-N.jsonl`. That file begins with a
ShardHeader, which says what the answers belong to, also where there are none; a line for each record follows, as output.py
writes it. Knows no prompts and no model.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from baize_engine.batch.records import Survey
from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.file_io import opened
from baize_engine.checkpoint.os_errors import reading
from baize_engine.errors import OutputError, RequestError
from baize_engine.printable import shown, shown_json

_SPELLED = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")
_NAME = re.compile(r"shard-([0-9]{4,6})-of-([0-9]{4,6})\.jsonl")
_HEADER_FIELDS = {"shard": int, "shards": int, "records": int, "records_digest": str, "run": dict}


@dataclass(frozen=True)
class Shard:
    """Part `number` of `shards`, counted from 1. RequestError where there is no such part."""

    number: int
    shards: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.shards:
            wanted = (
                f"1/{self.shards} to {self.shards}/{self.shards}" if self.shards else "a number of shards of at least 1"
            )
            raise RequestError(f"there is no shard {self}: shards are counted from 1, wanted {wanted}")

    def __str__(self) -> str:
        return f"{self.number}/{self.shards}"

    @staticmethod
    def parse(text: str) -> Shard:
        """The shard that is spelled "I/N"."""
        found = _SPELLED.fullmatch(text)
        if found is None:
            raise RequestError(f"the shard is {shown(text)}, wanted I/N, such as 3/8")
        return Shard(int(found[1]), int(found[2]))

    @property
    def file_name(self) -> str:
        """The name of the file with its answers."""
        return f"shard-{self.number:04d}-of-{self.shards:04d}.jsonl"

    def part(self, records: int) -> range:
        """The numbers of its records, of `records` in all: as many as those of any other shard, or one more or less."""
        return range(records * (self.number - 1) // self.shards, records * self.number // self.shards)


@dataclass(frozen=True)
class ShardHeader:
    """The first line of a shard's file.

    survey: of the whole input, so that shards of an input that changed between them are recognised. run: as `describe_run`
    describes it.
    """

    shard: Shard
    survey: Survey
    run: Mapping[str, Any]

    @property
    def part(self) -> range:
        """The numbers of the records that the shard answers."""
        return self.shard.part(self.survey.records)

    def line(self) -> bytes:
        """The line, as JSON in ASCII."""
        values = {"shard": self.shard.number, "shards": self.shard.shards, **asdict(self.survey), "run": self.run}
        return json.dumps(values).encode() + b"\n"

    @staticmethod
    def read(path: Path) -> ShardHeader | None:
        """The header of a shard's file. None where the file has no whole line, because its run has not come that far.

        Raises CheckpointError where the file cannot be read, OutputError where it is no shard's, or named as another's.
        """
        with opened(path) as file:
            line = file.readline(strict_json.MAX_BYTES)
        if not line.endswith(b"\n"):
            return None
        values = strict_json.whole_line(line)
        if any(type(values.get(name)) is not kind for name, kind in _HEADER_FIELDS.items()):
            raise OutputError(errno.EEXIST, f"{path} does not begin with a shard's header: was it edited?")
        named = _shard_of(path)
        if (values["shard"], values["shards"]) != (named.number, named.shards):
            found = f"{values['shard']}/{values['shards']}"
            raise OutputError(errno.EEXIST, f"{path} has the answers of shard {shown(found)}: was it renamed?")
        return ShardHeader(named, Survey(values["records"], values["records_digest"]), values["run"])

    def check_same_run(self, path: Path, other: ShardHeader, wanted_of: str) -> None:
        """Raises OutputError, which says what differs, unless `other`, read from `path`, is of the same input and run.

        wanted_of: what this header belongs to, for the message.
        """
        if other.survey != self.survey:
            mine, theirs = (
                f"{each.survey.records} records, digest {each.survey.records_digest}" for each in (self, other)
            )
            raise OutputError(
                errno.EEXIST, f"{path} was made from another input ({shown(theirs)}) than {wanted_of} ({mine})"
            )
        for name, mine, theirs in _differences(self.run, other.run):
            remedy = ""
            if name.startswith("files"):
                remedy = "; copies of a model need the same names, sizes and times (rsync -a, cp -p)"
            raise OutputError(
                errno.EEXIST,
                f"{path} was made with {shown(name)} {shown_json(theirs)}, and {wanted_of} has {shown_json(mine)}{remedy}",
            )


def shard_files(folder: Path) -> dict[Shard, Path]:
    """The files of shards in a folder, in order.

    Raises OutputError where there are shards of different numbers of shards, and CheckpointError where it cannot be read.
    """
    with reading(folder):
        paths = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    found = {_shard_of(path): path for path in paths}
    counts = sorted({shard.shards for shard in found})
    if len(counts) > 1:
        several = " and ".join(map(str, counts))
        raise OutputError(errno.EEXIST, f"{folder} has shards of {several}, wanted all of the same number of shards")
    return dict(sorted(found.items(), key=lambda item: item[0].number))


def check_folder(folder: Path, header: ShardHeader) -> None:
    """Checks that all shards in the folder are of the header's run and number of shards.

    Raises OutputError, which names the file and the difference.
    """
    for shard, path in shard_files(folder).items():
        if shard.shards != header.shard.shards:
            remedy = f"give --shard I/{shard.shards}, or another --output"
            raise OutputError(errno.EEXIST, f"{folder} has shards of {shard.shards}, such as {path.name}: {remedy}")
        if other := ShardHeader.read(path):
            header.check_same_run(path, other, "this run")


def _shard_of(path: Path) -> Shard:
    found = _NAME.fullmatch(path.name)
    try:
        shard = Shard(int(found[1]), int(found[2])) if found else None
    except RequestError:
        shard = None
    if shard is None or shard.file_name != path.name:
        raise OutputError(errno.EEXIST, f"{path} is not named as files of shards are, such as {Shard(3, 8).file_name}")
    return shard


def _differences(mine: Mapping[str, Any], theirs: Mapping[str, Any], within: str = "") -> list[tuple[str, Any, Any]]:
    """Where two descriptions differ: (name, a value of mine, the one of theirs); of lists, what only one of them has."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted({*mine, *theirs}):
        a, b = mine.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{within}{key}.")
        elif isinstance(a, list) and isinstance(b, list) and a != b:
            found.append((within + key, [each for each in a if each not in b], [each for each in b if each not in a]))
        elif a != b:
            found.append((within + key, a, b))
    return found
