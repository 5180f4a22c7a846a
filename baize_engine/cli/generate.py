"""`baize generate`: continues a prompt and prints the text as it comes, or answers a file of prompts."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from baize_engine.batch.options import BatchOptions
from baize_engine.checkpoint.os_errors import writing
from baize_engine.cli.exit_codes import DONE, INTERRUPTED, SOME_FAILED
from baize_engine.cli.options import (
    ROWS,
    check_model_options,
    engine_options,
    field_flags,
    field_values,
    flag,
    load_engine,
    model_folders,
    model_options,
    path,
    prompt_options,
    sampling_options,
    sampling_params,
    text_options,
    with_seed,
)
from baize_engine.cli.options import text as argument_text
from baize_engine.cli.streams import input_bytes, need_output, output_bytes, tell, tell_speculation, text
from baize_engine.errors import RequestError
from baize_engine.generation.usage import Since
from baize_engine.progress import Progress
from baize_engine.text.options import TextOptions

if TYPE_CHECKING:
    from baize_engine.batch.output import AnswerFile, AnswerStream
    from baize_engine.batch.shards import Shard, ShardHeader
    from baize_engine.generation.params import SamplingParams

STANDARD = "-"  # in place of a file's name: standard input, or standard output
FILES_ONLY = {
    "output": None, "shard": None, "resume": False, "window": None, "extra_columns": None, "logprobs": None, "quiet": False,
}  # fmt: skip
# Options that were added later, with their defaults. A run that sets none of them is described as before they existed, so
# that its output can still be resumed.
ADDED_LATER = {"parse_special": False, "add_bos": "auto", "extra_columns": "error", **ROWS}


def generate_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize generate`."""
    prompt = "text to continue, used as it is (only chat adds a chat format); - reads standard input"
    flag(parser, "--prompt", type=argument_text, metavar="TEXT", help=prompt)
    records = (
        'in place of --prompt: file of JSON lines, each {"prompt": TEXT}, {"messages": [...]} or {"token_ids": [...]}, with '
        'optional "id", "meta" and its own sampling parameters, named like these options; - reads standard input'
    )
    flag(parser, "--input", type=path, metavar="FILE", help=records)
    answers = (
        "file to write, which must be new: JSON lines that answer --input, in the same order; - writes to standard output; "
        "with --shard, a folder, made if absent, which all shards may share"
    )
    flag(parser, "--output", type=path, metavar="FILE", help=answers)
    shard = (
        "answer only part I of N of the records (1/N to N/N), into a file of its own in --output; machines with the same "
        "--input divide it into the same parts, and `baize merge` joins the answers"
    )
    flag(parser, "--shard", type=_shard, metavar="I/N", help=shard)
    resume = "continue the --output of an interrupted run with the same --input and options"
    flag(parser, "--resume", action="store_true", help=resume)
    # None tells that they were not given: they go with --input only
    field_flags(parser, BatchOptions, {"extra_columns": {"default": None}, "window": {"default": None}})
    flag(parser, "--quiet", action="store_true", help="show no progress bar")
    prompt_options(parser)
    sampling_options(parser)
    model_options(parser)


def generate(options: argparse.Namespace) -> int:
    """Continues --prompt on standard output, or answers --input in --output."""
    check_model_options(options)
    if (options.prompt is None) == (options.input is None):
        options.usage_error("wanted --prompt TEXT, or --input FILE in its place")
    return _continue_prompt(options) if options.input is None else _answer_input(options)


def _continue_prompt(options: argparse.Namespace) -> int:
    for name, default in FILES_ONLY.items():
        if getattr(options, name) != default:
            options.usage_error(f"--{name} applies to --input, not to --prompt")
    params = with_seed(sampling_params(options))
    need_output("the text")
    prompt: str = options.prompt
    if prompt == STANDARD:
        prompt = text(input_bytes("the prompt").read(), "the text of a prompt")
    with load_engine(options) as engine:
        if params.n > 1:
            for completion in engine.generate(prompt, params, **text_options(options)):
                print(completion.text)
        else:
            for piece in engine.stream(prompt, params, **text_options(options)):
                print(piece, end="", flush=True)
            print()
        tell_speculation(engine.usage)
    return DONE


def _answer_input(options: argparse.Namespace) -> int:
    """Answers each record of --input by a line of --output."""
    if options.output is None:
        options.usage_error("--input needs --output FILE")
    if options.output == STANDARD and options.resume:
        options.usage_error("--resume needs an --output that is a file")
    if options.shard is not None and STANDARD in (options.input, options.output):
        options.usage_error("--shard needs an --input that is a file and an --output that is a folder")
    if options.window is not None and options.window < 1:
        options.usage_error(f"--window is {options.window}, wanted at least 1")
    if options.input != STANDARD:
        return _answer_file(options, Path(options.input))
    with tempfile.TemporaryDirectory(prefix="baize-input-") as folder:  # records are read more than once
        path = Path(folder) / "standard input"
        with path.open("wb") as file:
            shutil.copyfileobj(input_bytes("the records"), file)
        return _answer_file(options, path)


def _answer_file(options: argparse.Namespace, path: Path) -> int:
    from baize_engine.batch.output import AnswerFile, AnswerStream
    from baize_engine.batch.records import survey
    from baize_engine.batch.run import answer, heads
    from baize_engine.batch.shards import ShardHeader

    given = {name: value for name, value in field_values(options, BatchOptions).items() if value is not None}
    batch = BatchOptions(sampling_params(options), TextOptions(**text_options(options)), **given)
    shown = path.name if options.input == STANDARD else str(path)
    found = survey(path)
    if not found.records:
        raise RequestError(f"{shown} has no records, wanted one JSON object per line")
    run = _description(options, batch.params)
    part = range(found.records) if options.shard is None else options.shard.part(found.records)
    total = len(part)
    answers: AnswerFile | AnswerStream
    if options.output == STANDARD:
        report, output = sys.stderr, "standard output"
        answers = AnswerStream(output_bytes())
    elif options.shard is None:
        report, output = sys.stdout, options.output
        answers = AnswerFile(Path(options.output), heads(path, run), options.resume)
    else:
        answers = _shard_file(options, ShardHeader(options.shard, found, json.loads(run)), heads(path, run, part))
        report, output = sys.stdout, str(answers.path)
    with answers:
        if answers.torn:
            tell(f"{output}: an unfinished line at the end was removed")
        if isinstance(answers, AnswerFile) and not total:  # more shards than records
            answers.begin()
        try:
            if answers.done < total:
                with (
                    load_engine(options) as engine,
                    Progress(
                        total, "prompt", not options.quiet, done=answers.done, note=Since(engine).speculation
                    ) as bar,
                ):
                    answer(engine, path, answers, run, batch, bar.add, part)
                    tell_speculation(engine.usage)
        except KeyboardInterrupt:
            left = f"{answers.done} of {total} records are in {output}" if answers.done else "none done"
            if answers.done and options.output != STANDARD:
                left += "; --resume continues"
            print(f"\nbaize: interrupted; {left}", file=sys.stderr)
            return INTERRUPTED
        if answers.done < total:
            raise RequestError(
                f"{shown} had {total} records, and {total - answers.done} of them disappeared while they were being answered"
            )
        print(f"{output}: {answers.done} records, {answers.failed} of them errors", file=report)
        return SOME_FAILED if answers.failed else DONE


def _shard_file(options: argparse.Namespace, header: ShardHeader, heads: Iterable[str]) -> AnswerFile:
    from baize_engine.batch.output import AnswerFile
    from baize_engine.batch.shards import check_folder

    folder = Path(options.output)
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"--output is {folder}, a file: wanted a folder, in which each shard writes its own file")
    with writing(folder, "be made"):
        folder.mkdir(parents=True, exist_ok=True)
    check_folder(folder, header)
    path = folder / header.shard.file_name
    return AnswerFile(path, heads, options.resume, header=header.line(), first=header.part.start)


def _shard(text: str) -> Shard:
    from baize_engine.batch.shards import Shard

    try:
        return Shard.parse(text)
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _description(options: argparse.Namespace, params: SamplingParams) -> str:
    """All that determines the answers besides the records: by this, --resume recognises the output of the same run."""
    from baize_engine.batch.run import describe_run
    from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
    from baize_engine.text.chat_formats import AUTO

    settings = engine_options(options).for_answers()
    folders = model_folders(options)
    if any(TokenizerFiles.read(folder).chat_template()[0] for folder in folders if folder.is_dir()):
        settings.setdefault("chat_format", AUTO)  # earlier versions did not ask such models by their templates
    for name, default in ADDED_LATER.items():
        if getattr(options, name) not in (None, default):
            settings[name] = getattr(options, name)
    return describe_run(folders, settings, params)
