"""`baize generate --input FILE --output FILE`: answers a file of prompts."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from baize_engine.cli_options import load_engine, sampling_params
from baize_engine.errors import RequestError

if TYPE_CHECKING:
    from baize_engine.answer_file import AnswerFile

WINDOW = 1024  # many batches: rows are empty only at its end, when the last samples run alone
SOME_FAILED = 3  # the exit code where the output is complete, and some of its lines are errors


def answer_file(options: argparse.Namespace) -> int:
    """Answers each record of --input by a line of --output."""
    from baize_engine.answer_file import AnswerFile
    from baize_engine.answering import describe_run, heads
    from baize_engine.checkpoint.hub import folder_of
    from baize_engine.prompt_records import records

    if options.output is None:
        options.usage_error("--input goes with --output FILE")
    if options.window is not None and options.window < 1:
        options.usage_error(f"--window is {options.window}, wanted at least 1")
    params = sampling_params(options)
    path, output = Path(options.input), Path(options.output)
    total = sum(1 for _ in records(path))
    if not total:
        raise RequestError(f"{path} has no records, wanted a JSON object a line")
    sources = (options.model,) if options.model is not None else (options.path_raw, options.path_diff)
    names = ("dtype", "quantize", "cache_dtype", "exact_activations", "max_model_len")
    settings = {name: getattr(options, name) for name in names}
    run = describe_run([folder_of(source) for source in sources], settings, params)
    with AnswerFile(output, heads(path, run), options.resume) as answers:
        if answers.torn:
            print(f"baize: {output}: an unfinished line at the end was cut off", file=sys.stderr)
        try:
            if answers.done < total:
                _answer(options, path, answers, run, total)
        except KeyboardInterrupt:
            left = (
                f"{answers.done} of {total} records are in {output}, --resume goes on" if answers.done else "none done"
            )
            print(f"\nbaize: interrupted; {left}", file=sys.stderr)
            return 130
        if answers.done < total:
            raise RequestError(
                f"{path} had {total} records and lost {total - answers.done} of them while they were answered"
            )
        print(f"{output}: {answers.done} records, {answers.failed} of them errors")
        return SOME_FAILED if answers.failed else 0


def _answer(options: argparse.Namespace, path: Path, answers: AnswerFile, run: str, total: int) -> None:
    from baize_engine.answering import answer
    from baize_engine.bar import bar

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

        answer(engine, path, answers, run, sampling_params(options), options.window or WINDOW, progress)
