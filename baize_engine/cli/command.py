"""The `baize` command: its subcommands, and what becomes of their errors. exit_codes.py says how it ends.

Option names follow the reference script weight_diff.py; spelling.py takes their other spellings.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from baize_engine import __version__
from baize_engine.cli.chat import chat, chat_options
from baize_engine.cli.demo import demo, demo_options
from baize_engine.cli.eval import eval_options, run_eval
from baize_engine.cli.exit_codes import DONE, INTERRUPTED, REFUSED
from baize_engine.cli.foreign_options import COMMANDS
from baize_engine.cli.generate import generate, generate_options
from baize_engine.cli.info import info, info_options
from baize_engine.cli.lean_torch import make_lean
from baize_engine.cli.lm_eval import LM_EVAL_HELP, lm_eval_options, run_lm_eval
from baize_engine.cli.make_diff import make_diff_options, run_make_diff
from baize_engine.cli.merge import merge_options, run_merge
from baize_engine.cli.options import load_engine
from baize_engine.cli.quantize import quantize_options, run_quantize
from baize_engine.cli.recover import recover_options, run_recover
from baize_engine.cli.signals import end_quietly, terminate_politely
from baize_engine.cli.spelling import CommandParser, nearest
from baize_engine.cli.streams import prepare, warnings_told
from baize_engine.cli.verify import run_verify, verify_options
from baize_engine.cli.xor import XOR_HELP, run_xor, xor_options
from baize_engine.distributed.world import World
from baize_engine.errors import BaizeError, DistributedError, error_chain

Command = Callable[[argparse.Namespace], int]  # options to exit code


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Without `arguments`, it takes those of the process, which ends afterwards."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments, own_process=arguments is None)
    except KeyboardInterrupt:  # a second one, while the first was reported
        return INTERRUPTED
    finally:
        if arguments is None:
            end_quietly()
            gc.freeze()  # Python's last collection, of all that torch made, would take 0.3 s and free what the exit frees


def _run(arguments: Sequence[str], own_process: bool) -> int:
    try:
        world = World.of_environment()
    except DistributedError as error:
        return _fail(str(error))
    if world is not None:
        world.set_torch_defaults()
        if world.rank > 0:
            return _follow(arguments)
    prepare()
    options = _parse(arguments)
    terminate_politely()
    if own_process and options.run in (generate, chat) and world is None:
        make_lean(options.device)
    try:
        with warnings_told():
            code: int = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BaizeError as error:
        return _fail(error_chain(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away, as `| head` does
        return REFUSED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(where + (error.strerror or str(error)))
    except KeyboardInterrupt:
        print(f"\nbaize: interrupted{_left(options)}", file=sys.stderr)
        return INTERRUPTED


def _left(options: argparse.Namespace) -> str:
    """What to say of the files that an interrupted command has left. A folder that keeps something has told so itself."""
    if options.run in (chat, demo, info, run_lm_eval, run_verify):
        return ""
    nothing = "; no half-written files were left"
    if options.run not in (run_recover, run_make_diff, run_xor):
        return nothing
    if options.resume:
        return "; the same command continues"
    return f"{nothing} (begun with --resume, the command would have kept what was finished)"


def _follow(arguments: Sequence[str]) -> int:
    """What a rank other than 0 does: it loads its part of the model and serves rank 0, which alone reads and prints."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  until the process ends
    options = _parse(arguments)
    if getattr(options, "tensor_parallel", None) == "1":  # rank 0 does alone what there is to do
        return DONE
    if options.run in (generate, chat, run_eval):
        load_engine(options)
    elif options.run is run_lm_eval:
        options.run(options)
    return DONE


def _fail(message: str) -> int:
    print("baize: " + " ".join(message.split("\n")), file=sys.stderr)
    return REFUSED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the command that was given. Exits with 0 after --help, with 2 where command or options are wrong."""
    parser, commands = _parser()
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(2)
    given = [*arguments[1:2], "--help"] if arguments[0] == "help" else arguments
    if not given[0].startswith("-") and given[0] not in commands:
        script = Path(given[0]).name.removesuffix(".py").rpartition(".")[2].replace("-", "_")
        near = COMMANDS.get(script) or nearest(script, commands)
        hint = f"did you mean baize {near}?" if near else "baize -h lists the commands"
        parser.error(f"there is no command {given[0]}; {hint}")
    return parser.parse_args(given)


def _parser() -> tuple[argparse.ArgumentParser, Collection[str]]:
    """The parser and the names of its commands."""
    parser = argparse.ArgumentParser(
        prog="baize", description="Recover LLaMA finetunes published as weight diffs, and run them.", allow_abbrev=False
    )
    parser.add_argument("-V", "--version", action="version", version=f"baize_engine {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=CommandParser)

    def command(name: str, options: Callable[[CommandParser], None], run: Command, text: str, more: str = "") -> None:
        about = f"{text[0].upper()}{text[1:]}. {more}"
        other = [name.replace("_", "-")] if "_" in name else []
        sub = commands.add_parser(name, help=text, description=about, aliases=other, allow_abbrev=False)
        sub.set_defaults(run=run, usage_error=sub.error)
        options(sub)

    more = (
        "Reads safetensors or .bin files, sharded or not, in float32, float16 or bfloat16. Everything is checked before "
        "the first byte is written, and memory use is bounded whatever the model's size. transformers can load the result."
    )
    command(
        "recover", recover_options, run_recover, "add a weight diff to its base and write the recovered model", more
    )
    text = "subtract a base from a finetuned model and write the diff"
    command("make_diff", make_diff_options, run_make_diff, text, "The inverse of recover.")
    command("xor", xor_options, run_xor, "rebuild a finetune from its base and its published XOR files", XOR_HELP)
    more = "Checks every tensor's SHA-256 and every file beside the weights. Exits with 1 if anything differs."
    command("verify", verify_options, run_verify, "compare a written folder with its manifest", more)
    more = (
        "The copy loads at once, because its weights are mapped. generate and chat can also quantise while they load."
    )
    command("quantize", quantize_options, run_quantize, "write a copy of a model with int8 or int4 weights", more)
    more = (
        "Of a model, reads only the files' headers, and shows its size, as stored and quantised, and the decode speed that "
        "this machine's memory allows."
    )
    command("info", info_options, info, "show the backends of this machine and the key facts of a model", more)
    more = (
        "The completion of --prompt is streamed to standard output. Each line of --input is answered by one line of --output: "
        '{"index": ..., "input": ..., "id": ..., "completions": [{"text": ..., "finish_reason": ..., ...}]}, or with '
        '"error" in place of "completions" if the record failed; the command then exits with 3.'
    )
    command("generate", generate_options, generate, "continue a prompt, or answer a file of prompts", more)
    more = (
        "All shards must be present, complete, and made from the same input, model and options. The result is byte for byte "
        "what one run over the whole input would have written. Exits with 3 if any record failed."
    )
    command("merge", merge_options, run_merge, "join the answers of generate --shard I/N", more)
    more = (
        "Messages are put into the model's chat format, which `baize info MODEL` shows. Without a terminal, each line of "
        "standard input is a message."
    )
    command("chat", chat_options, chat, "talk to a model in its chat format", more)
    more = (
        "Prompts, samples and metrics are those of the model card. Each example's record is written as soon as it is judged, "
        "and --resume continues from these records. Exits with 3 if any example failed."
    )
    command("eval", eval_options, run_eval, "evaluate a model on the tasks of open-instruct's model card", more)
    text = "evaluate a model with lm-evaluation-harness (pip install 'baize-engine[eval]')"
    command("lm_eval", lm_eval_options, run_lm_eval, text, LM_EVAL_HELP)
    text = "recover the bundled demo model, and ask it and its base the same questions"
    command("demo", demo_options, demo, text)
    return parser, commands.choices
