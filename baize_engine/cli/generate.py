"""`baize generate`: the text that follows a prompt, as it comes. Files of prompts are answer.py's."""

from __future__ import annotations

import argparse

from baize_engine.cli.answer import STANDARD, WINDOW, answer_file
from baize_engine.cli.options import (
    check_model_options,
    flag,
    load_engine,
    model_options,
    path,
    prompt_options,
    sampling_options,
    sampling_params,
    text_options,
    with_seed,
)
from baize_engine.cli.options import text as argument_text
from baize_engine.cli.streams import input_bytes, need_output, text

FILES_ONLY = {"output": None, "resume": False, "window": None, "extra_columns": None, "logprobs": None, "quiet": False}


def generate_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize generate`."""
    flag(
        parser,
        "--prompt",
        type=argument_text,
        metavar="TEXT",
        help="text to continue, taken as it is (see chat); - reads standard input",
    )
    flag(
        parser,
        "--input",
        type=path,
        metavar="FILE",
        help='in place of --prompt: JSON lines, each {"prompt": TEXT} or {"messages": [...]} or {"token_ids": [...]}, '
        'with "id", "meta" and sampling parameters by the names of these options where it wants its own; - reads standard '
        "input",
    )
    flag(
        parser,
        "--output",
        type=path,
        metavar="FILE",
        help="new file of JSON lines to write, one for each of --input, in order; - writes to standard output",
    )
    flag(
        parser,
        "--extra_columns",
        choices=("error", "keep", "drop"),
        default=None,
        help='with --input: what names in a record mean that are none of ours: its error (default), "extra" in its answer, or '
        "nothing",
    )
    flag(parser, "--resume", action="store_true", help="go on with the --output that a run with the same input left")
    flag(
        parser,
        "--window",
        type=int,
        default=None,
        metavar="N",
        help=f"prompts given to the model at a time; more of them fill its batch better and take memory (default: {WINDOW})",
    )
    flag(parser, "--quiet", action="store_true", help="no progress bar")
    prompt_options(parser)
    sampling_options(parser)
    model_options(parser)


def generate(options: argparse.Namespace) -> int:
    """Continues --prompt on standard output, or answers --input in --output."""
    check_model_options(options)
    if (options.prompt is None) == (options.input is None):
        options.usage_error("wanted --prompt TEXT, or --input FILE in its place")
    if options.input is not None:
        return answer_file(options)
    for name, default in FILES_ONLY.items():
        if getattr(options, name) != default:
            options.usage_error(f"--{name} goes with --input, not with --prompt")
    params = with_seed(sampling_params(options))
    need_output("the text")
    prompt = options.prompt
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
    return 0
