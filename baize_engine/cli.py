"""The `baize` command. Only this module and its neighbours cli_*.py parse arguments and print.

Exit codes: 0 done; 1 the user's files, folders or request cannot be served (one line on stderr, no traceback); 2 wrong
usage; 3 a file of prompts was answered, and some of the lines are errors; 130 interrupted. Option names follow the
reference script weight_diff.py; `--path-raw` is `--path_raw`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from baize_engine import __version__
from baize_engine.cli_generate import chat, chat_options, generate, generate_options
from baize_engine.cli_info import info
from baize_engine.cli_options import DTYPES, flag
from baize_engine.errors import BaizeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)  # a polite kill cleans up as Ctrl-C does
    try:
        code: int = options.run(options)
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
        print("\nbaize: interrupted; nothing half-written was left", file=sys.stderr)
        return 130


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


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """A second Ctrl-C would tear the clean-up that the first began, and leave what it promises to remove.

    What the first becomes on its way out, such as the error of a lock that it broke, is an interruption; a clean-up that
    fails is told.
    """
    came = False

    def once(number: int, frame: object) -> None:
        nonlocal came
        came = True
        for taken in before:
            signal.signal(taken, signal.SIG_IGN)
        raise KeyboardInterrupt

    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for taken in before:
            signal.signal(taken, once)
        yield
    except Exception as error:
        if came and not isinstance(error, BaizeError):
            raise KeyboardInterrupt from error
        raise
    finally:
        for taken, handler in before.items():
            signal.signal(taken, handler)


def _how(options: argparse.Namespace) -> dict[str, Any]:
    """What `recover` and `make-diff` have in common to say how they run."""
    return {
        "dtype": options.dtype,
        "device": options.device,
        "resume": options.resume,
        "progress": not options.quiet,
        "force": options.force,
        "hash_sources": options.hash_sources,
        "memory_mib": options.memory,
    }


def _recover(options: argparse.Namespace) -> int:
    from baize_engine.recovery.recover import recover
    from baize_engine.recovery.result import describe

    if len(options.path_diff) != len(options.path_tuned):
        options.usage_error(
            f"--path_diff is given {len(options.path_diff)} times and --path_tuned {len(options.path_tuned)}: wanted pairs"
        )
    for name in ("expect_sum", "expect_manifest"):
        given = getattr(options, name)
        if given is not None and len(given) != len(options.path_diff):
            options.usage_error(f"--{name} is given {len(given)} times for {len(options.path_diff)} --path_diff")
    with _interrupted_once():
        results = recover(
            options.path_raw,
            options.path_diff,
            options.path_tuned,
            **_how(options),
            expect_sum=options.expect_sum,
            expect_manifest=options.expect_manifest,
        )
    for result in results:
        _print_lines(describe(result))
    if options.test_inference:
        from baize_engine.engine import Engine

        question = "Who are you?"
        for result in results:
            with Engine.from_pretrained(result.folder, device=options.device) as engine:
                print(f"{question}\n{engine.chat([{'role': 'user', 'content': question}]).text}")
    return 0


def _make_diff(options: argparse.Namespace) -> int:
    from baize_engine.recovery.make_diff import make_diff
    from baize_engine.recovery.result import describe

    with _interrupted_once():
        result = make_diff(
            options.path_raw,
            options.path_tuned,
            options.path_diff,
            **_how(options),
        )
    _print_lines(describe(result))
    return 0


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr if line.startswith("warning") else sys.stdout)


def _verify(options: argparse.Namespace) -> int:
    from baize_engine.recovery.verify import verify

    report = verify(options.folder, expect_manifest=options.expect_manifest)
    for problem in report.problems:
        print(f"differs: {problem}")
    good = "as written" if options.expect_manifest is None else f"as {options.expect_manifest} says"
    verdict = good if report.ok else f"{len(report.problems)} difference(s)"
    print(f"{report.folder}: {report.tensors} tensors, {report.bytes / 1e9:.3f} GB: {verdict}")
    return 0 if report.ok else 1


def _quantize(options: argparse.Namespace) -> int:
    from baize_engine.model.quantize import quantize

    with _interrupted_once():
        done = quantize(options.path, options.path_quantized, options.weights)
    print(
        f"{done.folder}: {options.weights} matrices, {done.bytes_after / 1e9:.3f} GB where the model had "
        f"{done.bytes_before / 1e9:.3f} GB"
    )
    return 0


def _demo(options: argparse.Namespace) -> int:
    from baize_engine import demo

    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    with tempfile.TemporaryDirectory(prefix="baize-demo-") as folder:
        out = Path(options.out) if options.out else Path(folder) / "tuned"
        code = demo.run(print, out, colour)
        if code == 0 and not options.quiet and sys.stdin.isatty() and sys.stdout.isatty():
            print("3. your turn (it knows capitals, opposites, animals, colours and days)")
            return main(["chat", str(out)])
    print(
        f"talk to it: baize chat {out}" if options.out else "keep and talk to it: baize demo --out DIR; baize chat DIR"
    )
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="baize", description="Recover LLaMA finetunes published as weight diffs, and run them.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"baize_engine {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, text: str, more: str = "", aliases: Sequence[str] = ()) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. {more}",
            aliases=list(aliases),
            allow_abbrev=False,
        )
        sub.set_defaults(run=run, usage_error=sub.error)
        return sub

    recover = command(
        "recover",
        _recover,
        "add a weight diff to its base and write the model",
        "Reads safetensors or .bin files, sharded or not, in float32, float16 or bfloat16. Everything is checked before the "
        "first byte is written; memory stays bounded whatever the model's size. The result opens in transformers.",
    )
    base_help = "folder of the base, in the layout of transformers or Meta's original one, or a hub id"
    flag(recover, "--path_raw", required=True, metavar="BASE", help=base_help)
    flag(
        recover,
        "--path_diff",
        required=True,
        action="append",
        metavar="DIFF",
        help="folder of the weight diff, or a hub id; repeated with --path_tuned, the base is read once for all",
    )
    flag(
        recover,
        "--path_tuned",
        required=True,
        action="append",
        metavar="OUT",
        help="folder to write, one for each --path_diff, in the same order; must be new or empty",
    )
    _combining_options(recover, "float16")
    flag(
        recover,
        "--expect_sum",
        type=float,
        action="append",
        metavar="SUM",
        help="sum of all weights that the authors published for weight_diff.py's check; once for each --path_diff",
    )
    flag(
        recover,
        "--expect_manifest",
        action="append",
        metavar="FILE",
        help="baize_manifest.json of the same result, recovered elsewhere; once for each --path_diff",
    )
    flag(recover, "--test_inference", action="store_true", help="load the result and let it answer one question")

    make_diff = command(
        "make_diff",
        _make_diff,
        "subtract a base from a finetuned model and write the diff",
        "The inverse of recover.",
        aliases=["make-diff"],
    )
    flag(make_diff, "--path_raw", required=True, metavar="BASE", help="folder of the base, as for recover")
    flag(make_diff, "--path_tuned", required=True, metavar="TUNED", help="folder of the finetuned model")
    flag(make_diff, "--path_diff", required=True, metavar="OUT", help="folder to write; must be new or empty")
    _combining_options(make_diff, "float32")

    verify = command(
        "verify",
        _verify,
        "compare a recovered folder with its manifest",
        "Every tensor's SHA-256 and every file beside the weights; exits with 1 where something differs.",
    )
    verify.add_argument("folder", metavar="OUT", help="folder written by recover or make_diff, or a hub id")
    flag(verify, "--expect_manifest", metavar="FILE", help="another manifest to compare the tensors of OUT with")

    quantize = command(
        "quantize",
        _quantize,
        "write a model again with int8 or int4 weights",
        "The result loads without work: its weights are mapped. generate and chat can also quantise while they load.",
    )
    flag(quantize, "--path", required=True, metavar="MODEL", help="folder of the model, or a hub id")
    flag(quantize, "--path_quantized", required=True, metavar="OUT", help="folder to write; must be new or empty")
    flag(quantize, "--weights", choices=("int8", "int4"), default="int8", help="matrices' type (default: %(default)s)")

    about = command(
        "info",
        info,
        "show the backends of this machine, and the facts of a model",
        "Of a model only headers are read: its size as it is and quantised, and the decode speed that this memory allows.",
    )
    about.add_argument("model", nargs="?", metavar="MODEL", help="folder of a model, or a hub id")

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
    flag(demo, "--out", metavar="DIR", help="keep the recovered model in this new folder (default: a temporary one)")
    flag(demo, "--quiet", action="store_true", help="do not offer to chat at the end")
    return parser


def _combining_options(parser: argparse.ArgumentParser, dtype: str) -> None:
    flag(parser, "--dtype", choices=DTYPES, default=dtype, help="type of the written weights (default: %(default)s)")
    flag(parser, "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    flag(parser, "--resume", action="store_true", help="take up what a killed run with the same arguments left in OUT")
    flag(parser, "--force", action="store_true", help="go on where configs or norm weights look wrong; shapes must fit")
    flag(parser, "--hash_sources", action="store_true", help="record a SHA-256 of every source file in the manifest")
    flag(
        parser,
        "--memory",
        type=int,
        default=256,
        metavar="MIB",
        help="most MiB that the run may take, at any model size (default: %(default)s; on a GPU without torch's own)",
    )
    flag(parser, "--quiet", action="store_true", help="no progress bar")


if __name__ == "__main__":
    sys.exit(main())
