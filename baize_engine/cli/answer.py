"""`baize generate --input FILE --output FILE`: answers a file of prompts."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from baize_engine.cli.options import load_engine, sampling_params, text_options
from baize_engine.cli.streams import input_bytes, output_bytes, tell
from baize_engine.errors import RequestError

if TYPE_CHECKING:
    from baize_engine.batch.output import AnswerFile, AnswerStream

WINDOW = 1024  # many batches: rows are empty only at its end, when the last samples run alone
SOME_FAILED = 3  # the exit code where the output is complete, and some of its lines are errors
INTERRUPTED = 130
UNSET = (None, False, "auto", "error")  # of options that are left alone
STANDARD = "-"  # in place of a file's name


def answer_file(options: argparse.Namespace) -> int:
    """Answers each record of --input by a line of --output. `-` is standard input, and standard output."""
    if options.output is None:
        options.usage_error("--input goes with --output FILE")
    if options.output == STANDARD and options.resume:
        options.usage_error("--resume goes with an --output that is a file")
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
    from baize_engine.batch.records import records
    from baize_engine.batch.run import describe_run, heads
    from baize_engine.checkpoint.hub import folder_of

    params = sampling_params(options)
    shown = path.name if options.input == STANDARD else str(path)
    total = sum(1 for _ in records(path))
    if not total:
        raise RequestError(f"{shown} has no records, wanted a JSON object a line")
    sources = (options.model,) if options.model is not None else (options.path_raw, options.path_diff)
    names = ("dtype", "quantize", "cache_dtype", "exact_activations", "max_model_len")
    settings = {name: getattr(options, name) for name in names}
    for name in ("parse_special", "add_bos", "extra_columns", "new_rows", "drop_rows"):
        if getattr(options, name) not in UNSET:  # or the runs of before these options came would be other runs
            settings[name] = getattr(options, name)
    run = describe_run([folder_of(source) for source in sources], settings, params)
    told, output = (sys.stderr, "standard output") if options.output == STANDARD else (sys.stdout, options.output)
    answers: AnswerFile | AnswerStream
    if options.output == STANDARD:
        answers = AnswerStream(output_bytes())
    else:
        answers = AnswerFile(Path(options.output), heads(path, run), options.resume)
    with answers:
        if answers.torn:
            tell(f"{output}: an unfinished line at the end was cut off")
        try:
            if answers.done < total:
                _answer(options, path, answers, run, total)
        except KeyboardInterrupt:
            left = f"{answers.done} of {total} records are in {output}" if answers.done else "none done"
            if answers.done and options.output != STANDARD:
                left += ", --resume goes on"
            print(f"\nbaize: interrupted; {left}", file=sys.stderr)
            return INTERRUPTED
        if answers.done < total:
            raise RequestError(
                f"{shown} had {total} records and lost {total - answers.done} of them while they were answered"
            )
        print(f"{output}: {answers.done} records, {answers.failed} of them errors", file=told)
        return SOME_FAILED if answers.failed else 0


def _answer(options: argparse.Namespace, path: Path, answers: AnswerFile | AnswerStream, run: str, total: int) -> None:
    from baize_engine.batch.run import answer
    from baize_engine.progress import bar
    from baize_engine.text.options import TextOptions

    with load_engine(options) as engine, ExitStack() as stack:
        shown = bar(not options.quiet, total=total, initial=answers.done, unit="prompt")
        if shown is not None:
            stack.enter_context(shown)
        made, begin = 0, time.monotonic()

        def progress(prompts: int, tokens: int) -> None:
            nonlocal made
            made += tokens
            if shown is not None:
                shown.set_postfix_str(f"{made / max(time.monotonic() - begin, 1e-9):.1f} tok/s", refresh=False)
                shown.update(prompts)

        params, window = sampling_params(options), options.window or WINDOW
        extra = options.extra_columns or "error"
        answer(engine, path, answers, run, params, window, progress, TextOptions(**text_options(options)), extra)
