"""The `baize` command. Only this module and its neighbours cli_*.py parse arguments and print.

Exit codes: 0 done; 1 the user's files, folders or request cannot be served (one line on stderr, no traceback); 2 wrong
usage; 3 a file of prompts or a pipe of messages was answered, and some of them could not be; 130 interrupted. Option names
follow the reference script weight_diff.py; other spellings are cli_spelling's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from baize_engine import __version__
from baize_engine.cli.answer import INTERRUPTED
from baize_engine.cli.chat import chat, chat_options
from baize_engine.cli.generate import generate, generate_options
from baize_engine.cli.info import info
from baize_engine.cli.notes import COMMANDS
from baize_engine.cli.options import flag, path
from baize_engine.cli.recover import (
    make_diff_options,
    quantize_options,
    recover_options,
    run_make_diff,
    run_quantize,
    run_recover,
    run_verify,
    verify_options,
)
from baize_engine.cli.signals import end_quietly, terminate_politely
from baize_engine.cli.spelling import CommandParser, nearest
from baize_engine.cli.streams import need_output, prepare, warnings_told
from baize_engine.cli.xor import XOR_HELP, run_xor, xor_options
from baize_engine.errors import BaizeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Without `arguments`, those of the process, which is about to end then."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # a second one, while the first was told
        return INTERRUPTED
    finally:
        if arguments is None:
            end_quietly()


def _run(arguments: Sequence[str]) -> int:
    prepare()
    options = _parse(arguments)
    terminate_politely()
    try:
        if options.run is info:
            need_output("all that info says")
        with warnings_told():
            code: int = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BaizeError as error:
        return _fail(told(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away, as `| head` does
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(where + (error.strerror or str(error)))
    except KeyboardInterrupt:
        left = "" if options.run in (chat, info) else "; nothing half-written was left"
        print(f"\nbaize: interrupted{left}", file=sys.stderr)
        return INTERRUPTED


def _fail(message: str) -> int:
    print("baize: " + " ".join(message.split("\n")), file=sys.stderr)
    return 1


def told(error: BaseException) -> str:
    """Its message, after those of the failures during whose clean-up it was raised: they are the cause."""
    messages: list[str] = []
    step: BaseException | None = error
    while step is not None:
        if isinstance(step, BaizeError):
            messages.insert(0, str(step))
        hidden = step.__suppress_context__ and step.__cause__ is None  # raised "from None"
        step = None if hidden else step.__context__
    return "; then ".join(messages)


def _demo(options: argparse.Namespace) -> int:
    from baize_engine.cli import demo

    need_output("the answers")
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    with tempfile.TemporaryDirectory(prefix="baize-demo-") as folder:
        out = Path(options.out) if options.out else Path(folder) / "tuned"
        code = demo.run(print, out, colour)
        if code == 0 and not options.quiet and sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
            print("3. your turn (it knows capitals, opposites, animals, colours and days)")
            return main(["chat", str(out)])
    print(
        f"talk to it: baize chat {out}" if options.out else "keep and talk to it: baize demo --out DIR; baize chat DIR"
    )
    return code


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Exits with 0 after help that was asked for, with 2 where the command or its options are wrong."""
    parser, commands = _parser()
    given = list(arguments)
    if not given:
        parser.print_help(sys.stderr)
        parser.exit(2)
    if given[0] == "help":
        given = [*given[1:2], "--help"]
    if not given[0].startswith("-") and given[0] not in commands:
        script = Path(given[0]).name.removesuffix(".py").rpartition(".")[2].replace("-", "_")
        near = COMMANDS.get(script) or nearest(script, commands)
        hint = f"did you mean baize {near}?" if near else "baize -h lists what there is"
        parser.error(f"there is no command {given[0]}; {hint}")
    return parser.parse_args(given)


def _parser() -> tuple[argparse.ArgumentParser, Collection[str]]:
    """The parser, and the names of its commands."""
    parser = argparse.ArgumentParser(
        prog="baize", description="Recover LLaMA finetunes published as weight diffs, and run them.", allow_abbrev=False
    )
    parser.add_argument("-V", "--version", action="version", version=f"baize_engine {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=CommandParser)

    def command(name: str, run: Any, text: str, more: str = "", aliases: Sequence[str] = ()) -> CommandParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. {more}",
            aliases=list(aliases),
            allow_abbrev=False,
        )
        sub.set_defaults(run=run, usage_error=sub.error)
        return sub

    recover_options(
        command(
            "recover",
            run_recover,
            "add a weight diff to its base and write the model",
            "Reads safetensors or .bin files, sharded or not, in float32, float16 or bfloat16. Everything is checked before "
            "the first byte is written; memory stays bounded whatever the model's size. The result opens in transformers.",
        )
    )
    make_diff_options(
        command(
            "make_diff",
            run_make_diff,
            "subtract a base from a finetuned model and write the diff",
            "The inverse of recover.",
            aliases=["make-diff"],
        )
    )
    xor_options(command("xor", run_xor, "make a finetune of a base and its published XOR files", XOR_HELP))
    verify_options(
        command(
            "verify",
            run_verify,
            "compare a recovered folder with its manifest",
            "Every tensor's SHA-256 and every file beside the weights; exits with 1 where something differs.",
        )
    )
    quantize_options(
        command(
            "quantize",
            run_quantize,
            "write a model again with int8 or int4 weights",
            "The result loads without work: its weights are mapped. generate and chat can also quantise while they load.",
        )
    )

    about = command(
        "info",
        info,
        "show the backends of this machine, and the facts of a model",
        "Of a model only headers are read: its size as it is and quantised, and the decode speed that this memory allows.",
    )
    about.add_argument("model", nargs="?", type=path, metavar="MODEL", help="folder of a model, or a hub id")

    generate_options(
        command(
            "generate",
            generate,
            "continue a prompt, or answer a file of prompts",
            "The text of --prompt is streamed to standard output. Of --input each line is answered by a line of --output: "
            '{"index": ..., "input": ..., "id": ..., "completions": [{"text": ..., "finish_reason": ..., ...}]}, or with '
            '"error" in place of completions, and the command then exits with 3 at the end.',
        )
    )
    chat_options(
        command(
            "chat",
            chat,
            "talk to a model in its chat format",
            "Messages are wrapped as <|user|> and <|assistant|> turns; without a terminal, each input line is a message.",
        )
    )

    demo = command("demo", _demo, "recover the small trained pair that comes along, and let it answer")
    flag(
        demo,
        "--out",
        type=path,
        metavar="DIR",
        help="keep the recovered model in this new folder (default: a temporary one)",
    )
    flag(demo, "--quiet", action="store_true", help="do not offer to chat at the end")
    return parser, commands.choices


if __name__ == "__main__":
    sys.exit(main())
