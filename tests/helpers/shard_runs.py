"""Shards of a made-up run, as files, without a model."""

from __future__ import annotations

from pathlib import Path

from baize_engine.batch.output import AnswerFile, head
from baize_engine.batch.records import Survey
from baize_engine.batch.shards import Shard, ShardHeader, check_folder

CONTENTS = [f'{{"prompt": "{index}"}}'.encode() for index in range(10)]
RUN = {
    "files": [["model.safetensors", 5, 7], ["config.json", 2, 7]],
    "settings": {"quantize": None},
    "params": {"seed": 3},
}
SURVEY = Survey(len(CONTENTS), "0" * 16)


def header(number: int, shards: int, survey: Survey = SURVEY, run: dict = RUN) -> ShardHeader:
    return ShardHeader(Shard(number, shards), survey, run)


def rest(index: int) -> dict:
    return {"error": f"line {index + 1}: é"} if index == 7 else {"completions": [{"text": f"é{index}"}]}


def heads(part: range) -> list[str]:
    return [head(index, CONTENTS[index], "run") for index in part]


def answer(folder: Path, wanted: ShardHeader, most: int | None = None, resume: bool = False) -> Path:
    """Writes a shard's file, or takes it up: all of its answers, or at most so many."""
    check_folder(folder, wanted)
    part, path = wanted.part, folder / wanted.shard.file_name
    with AnswerFile(path, heads(part), resume, header=wanted.line(), first=part.start) as answers:
        if not part:
            answers.begin()
        for index in part[answers.done : most]:
            answers.append(head(index, CONTENTS[index], "run"), rest(index))
    return path


def unsharded(path: Path) -> bytes:
    with AnswerFile(path, heads(range(10)), False) as answers:
        for index in range(10):
            answers.append(head(index, CONTENTS[index], "run"), rest(index))
    return path.read_bytes()
