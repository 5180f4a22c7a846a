"""`baize generate` and `baize chat`: text as it comes, or a conversation. Files of prompts are cli_answer's."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from baize_engine.cli_answer import WINDOW, answer_file
from baize_engine.cli_options import (
    check_model_options,
    flag,
    load_engine,
    model_options,
    path,
    sampling_options,
    sampling_params,
)
from baize_engine.errors import RequestError

if TYPE_CHECKING:
    from baize_engine.engine import Engine
    from baize_engine.generation.params import SamplingParams

FILES_ONLY = {"output": None, "resume": False, "window": None, "logprobs": None, "quiet": False}


def generate_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize generate`."""
    flag(parser, "--prompt", metavar="TEXT", help="text to continue, taken as it is (see chat); - reads standard input")
    flag(
        parser,
        "--input",
        type=path,
        metavar="FILE",
        help='in place of --prompt: JSON lines, each {"prompt": TEXT} or {"messages": [...]} or {"token_ids": [...]}, '
        'with "id" and sampling parameters by the names of these options where it wants its own',
    )
    flag(
        parser,
        "--output",
        type=path,
        metavar="FILE",
        help="new file of JSON lines to write, one for each of --input, in order",
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
    flag(
        parser,
        "--logprobs",
        type=int,
        default=None,
        metavar="K",
        help="with --output: of each token and the K likeliest",
    )
    flag(parser, "--quiet", action="store_true", help="no progress bar")
    flag(parser, "--n", type=int, default=1, metavar="N", help="completions for each prompt (default: %(default)s)")
    sampling_options(parser)
    model_options(parser)


def chat_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize chat`."""
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
    params = sampling_params(options)
    prompt = _standard_input() if options.prompt == "-" else options.prompt
    with load_engine(options) as engine:
        if params.n > 1:
            for completion in engine.generate(prompt, params):
                print(completion.text)
        else:
            for piece in engine.stream(prompt, params):
                print(piece, end="", flush=True)
            print()
    return 0


def _standard_input() -> str:
    content = sys.stdin.buffer.read()
    try:
        return content.decode()
    except UnicodeDecodeError as bad:
        raise RequestError(f"standard input is not UTF-8 at byte {bad.start}, wanted the text of a prompt") from None


def chat(options: argparse.Namespace) -> int:
    """Answers what is typed, or each line of standard input."""
    params = sampling_params(options)
    shown = sys.stdin.isatty() and sys.stdout.isatty()
    with load_engine(options) as engine:
        if shown:
            print("Type a message; /new starts over, /exit or Ctrl-D leaves.")
        messages: list[dict[str, str]] = []
        while True:
            try:
                text = input("you> " if shown else "").strip()
            except EOFError:
                break
            if text == "/exit":
                break
            if text == "/new":
                messages = []
            elif text:
                messages = _turn(engine, params, [*messages, {"role": "user", "content": text}])
    return 0


def _turn(engine: Engine, params: SamplingParams, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Prints the reply to the last message as it comes; returns the conversation with the reply, or what still fits."""
    pieces = []
    try:
        for piece in engine.stream(engine.chat_ids(messages), params):
            print(piece, end="", flush=True)
            pieces.append(piece)
        print()
    except RequestError as error:
        print(f"baize: {error}; the conversation starts over", file=sys.stderr)
        return []
    except KeyboardInterrupt:
        print()  # Ctrl-C ends the reply, not the chat
    return [*messages, {"role": "assistant", "content": "".join(pieces)}]
