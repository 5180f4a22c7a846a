"""The `baize` command. Only this module parses arguments and prints.

Exit codes: 0 done; 1 the user's files, folders or request cannot be served (one line on stderr, no traceback); 2 wrong
usage; 130 interrupted. Option names follow the reference script weight_diff.py; `--path-raw` is `--path_raw`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baize_engine import __version__
from baize_engine.errors import BaizeError, ConfigError, RequestError

if TYPE_CHECKING:
    from baize_engine.checkpoint.index import CheckpointIndex
    from baize_engine.engine import Engine
    from baize_engine.generation.params import SamplingParams

DTYPES = ("float16", "bfloat16", "float32")


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
    results = recover(
        options.path_raw,
        options.path_diff,
        options.path_tuned,
        dtype=options.dtype,
        device=options.device,
        resume=options.resume,
        progress=not options.quiet,
        force=options.force,
        hash_sources=options.hash_sources,
        memory_mib=options.memory,
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

    result = make_diff(
        options.path_raw,
        options.path_tuned,
        options.path_diff,
        dtype=options.dtype,
        device=options.device,
        resume=options.resume,
        progress=not options.quiet,
        force=options.force,
        hash_sources=options.hash_sources,
        memory_mib=options.memory,
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

    done = quantize(options.path, options.path_quantized, options.weights)
    print(
        f"{done.folder}: {options.weights} matrices, {done.bytes_after / 1e9:.3f} GB where the model had "
        f"{done.bytes_before / 1e9:.3f} GB"
    )
    return 0


def _info(options: argparse.Namespace) -> int:
    from baize_engine import backend

    print(f"baize_engine {__version__}")
    device = backend.resolve_device("auto")
    print(f"device: {device}")
    for op in backend.OPS:
        chosen = backend.choose(op, device).name
        rows = [f"{row.name} ({row.objection(device) or 'can run'})" for row in backend.table(op)]
        print(f"  {op:<15} {chosen:<12} of: {'; '.join(rows)}")
    if options.model:
        from baize_engine.checkpoint.hub import folder_of

        _info_model(folder_of(options.model), device)
    return 0


def _info_model(folder: Path, device: str) -> None:
    from baize_engine.checkpoint.config_file import read_normalised
    from baize_engine.checkpoint.index import read_index

    index = read_index(folder)  # first: it says best what is wrong with a folder that is no model
    config = read_normalised(folder)
    dtypes = sorted({entry.dtype for entry in index.entries.values()})
    size = sum(entry.nbytes for entry in index.entries.values())
    print(
        f"{folder}: {len(index.entries)} tensors in {len(index.files)} file(s), {size / 1e9:.3f} GB, {', '.join(dtypes)}"
    )
    print(
        f"  {config['num_hidden_layers']} layers, hidden {config['hidden_size']}, {config['num_attention_heads']} heads, "
        f"{config['num_key_value_heads']} kv heads, "
        f"intermediate {config['intermediate_size']}, vocabulary {config['vocab_size']}, "
        f"{config['max_position_embeddings']} positions"
    )
    _info_costs(folder, index, device)


def _info_costs(folder: Path, index: CheckpointIndex, device: str) -> None:
    """What the model takes in memory and a decode step moves, from headers; and the speed that memory allows here."""
    from baize_engine.checkpoint.dtypes import FLOATS
    from baize_engine.model import cost, names
    from baize_engine.model.config import ModelConfig

    try:
        config = ModelConfig.from_folder(folder)
    except ConfigError as error:
        print(f"  not a model that this decoder runs: {error}")
        return
    table = index.entries.get(names.EMBED)
    if table is None or table.dtype not in FLOATS:
        found = "no such tensor" if table is None else table.dtype
        print(f"  not a model that this decoder runs: {names.EMBED}: {found}, wanted {', '.join(FLOATS)}")
        return
    activation = "float32" if device == "cpu" else table.dtype
    kv = cost.kv_bytes_per_token(config, cost.itemsize(activation))
    print(f"  parameters: {cost.parameters(config):,}; KV cache: {kv:,} bytes a token in {activation}")
    speed, how = _memory_speed(device)
    print(f"  memory of {device}: {f'{speed / 1e9:.1f} GB/s, ' if speed else ''}{how}")
    context = min(128, config.max_position_embeddings)
    print(f"  decode at batch 1 and context {context}:")
    for kind in (config.quantization,) if config.quantization else (table.dtype, "int8", "int4"):
        costs = cost.decode_step(config, kind, 1, context, activation, table.dtype)
        weights = cost.weight_bytes(config, kind, activation, table.dtype)
        ceiling = f"{cost.ceiling_tokens_per_second(costs, 1, speed):,.1f} tok/s" if speed else "not known"
        moved = sum(each.bytes for each in costs)
        print(f"    {kind:<9} weights {weights / 2**30:.3f} GiB, {moved:,} bytes a step, ceiling {ceiling}")


def _memory_speed(device: str) -> tuple[float | None, str]:
    """Bytes a second that memory gives, the best of a few runs, and how that was found; None where it could not be."""
    import torch

    size = (256 if device == "cpu" else 1024) << 20  # larger than caches
    best = float("inf")
    try:
        source = torch.ones(size // 4, device=device)
        copy = None if device == "cpu" else torch.empty_like(source)
        for _ in range(3 if copy is None else 10):
            begin = time.perf_counter()
            if copy is None:
                source.sum()
            else:
                copy.copy_(source)
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - begin)
    except RuntimeError as error:  # no room on the device, in whatever words
        return None, f"speed not measured: {str(error).splitlines()[0]}"
    if copy is None:
        return size / best, f"measured by a read of {size >> 20} MiB now"
    return 2 * size / best, f"measured by a copy of {size >> 20} MiB now"  # a copy reads and writes them


def _generate(options: argparse.Namespace) -> int:
    params = _params(options)
    with _engine(options) as engine:
        if params.n > 1:
            for completion in engine.generate(options.prompt, params):
                print(completion.text)
        else:
            for piece in engine.stream(options.prompt, params):
                print(piece, end="", flush=True)
            print()
    return 0


def _chat(options: argparse.Namespace) -> int:
    params = _params(options)
    shown = sys.stdin.isatty() and sys.stdout.isatty()
    with _engine(options) as engine:
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


def _engine(options: argparse.Namespace) -> Engine:
    from baize_engine.engine import Engine

    pair = (options.path_raw, options.path_diff)
    if (options.model is None) == (pair == (None, None)) or (options.model is None and None in pair):
        options.usage_error("wanted MODEL, or --path_raw and --path_diff in its place")
    settings: dict[str, Any] = {
        "device": options.device,
        "quantize": options.quantize,
        "max_model_len": options.max_model_len,
        "threads": options.threads,
        "cache_dtype": options.cache_dtype,
    }
    if options.model is not None:
        return Engine.from_pretrained(options.model, dtype=options.dtype, **settings)
    dtype = "float16" if options.dtype == "auto" else options.dtype
    return Engine.from_diff(*pair, dtype=dtype, progress=True, **settings)


def _params(options: argparse.Namespace) -> SamplingParams:
    from baize_engine.generation.params import SamplingParams

    return SamplingParams(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        stop=tuple(options.stop),
        n=options.n,
    )


def _flag(parser: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    """An option under its documented name, with hyphens accepted in place of underscores."""
    names = [name] if "_" not in name else [name, "--" + name[2:].replace("_", "-")]
    parser.add_argument(*names, dest=name[2:], **settings)


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
    _flag(recover, "--path_raw", required=True, metavar="BASE", help=base_help)
    _flag(
        recover,
        "--path_diff",
        required=True,
        action="append",
        metavar="DIFF",
        help="folder of the weight diff, or a hub id; repeated with --path_tuned, the base is read once for all",
    )
    _flag(
        recover,
        "--path_tuned",
        required=True,
        action="append",
        metavar="OUT",
        help="folder to write, one for each --path_diff, in the same order; must be new or empty",
    )
    _combining_options(recover, "float16")
    _flag(
        recover,
        "--expect_sum",
        type=float,
        action="append",
        metavar="SUM",
        help="sum of all weights that the authors published for weight_diff.py's check; once for each --path_diff",
    )
    _flag(
        recover,
        "--expect_manifest",
        action="append",
        metavar="FILE",
        help="baize_manifest.json of the same result, recovered elsewhere; once for each --path_diff",
    )
    _flag(recover, "--test_inference", action="store_true", help="load the result and let it answer one question")

    make_diff = command(
        "make_diff",
        _make_diff,
        "subtract a base from a finetuned model and write the diff",
        "The inverse of recover.",
        aliases=["make-diff"],
    )
    _flag(make_diff, "--path_raw", required=True, metavar="BASE", help="folder of the base, as for recover")
    _flag(make_diff, "--path_tuned", required=True, metavar="TUNED", help="folder of the finetuned model")
    _flag(make_diff, "--path_diff", required=True, metavar="OUT", help="folder to write; must be new or empty")
    _combining_options(make_diff, "float32")

    verify = command(
        "verify",
        _verify,
        "compare a recovered folder with its manifest",
        "Every tensor's SHA-256 and every file beside the weights; exits with 1 where something differs.",
    )
    verify.add_argument("folder", metavar="OUT", help="folder written by recover or make_diff, or a hub id")
    _flag(verify, "--expect_manifest", metavar="FILE", help="another manifest to compare the tensors of OUT with")

    quantize = command(
        "quantize",
        _quantize,
        "write a model again with int8 or int4 weights",
        "The result loads without work: its weights are mapped. generate and chat can also quantise while they load.",
    )
    _flag(quantize, "--path", required=True, metavar="MODEL", help="folder of the model, or a hub id")
    _flag(quantize, "--path_quantized", required=True, metavar="OUT", help="folder to write; must be new or empty")
    _flag(quantize, "--weights", choices=("int8", "int4"), default="int8", help="matrices' type (default: %(default)s)")

    info = command(
        "info",
        _info,
        "show the backends of this machine, and the facts of a model",
        "Of a model only headers are read: its size as it is and quantised, and the decode speed that this memory allows.",
    )
    info.add_argument("model", nargs="?", metavar="MODEL", help="folder of a model, or a hub id")

    generate = command("generate", _generate, "continue a prompt", "The text is streamed to standard output.")
    _flag(generate, "--prompt", required=True, metavar="TEXT", help="text to continue, taken as it is (see chat)")
    _generation_options(generate)

    chat = command(
        "chat",
        _chat,
        "talk to a model in its chat format",
        "Messages are wrapped as <|user|> and <|assistant|> turns; without a terminal, each input line is a message.",
    )
    _generation_options(chat)

    demo = command("demo", _demo, "recover the small trained pair that comes along, and let it answer")
    _flag(demo, "--out", metavar="DIR", help="keep the recovered model in this new folder (default: a temporary one)")
    _flag(demo, "--quiet", action="store_true", help="do not offer to chat at the end")
    return parser


def _combining_options(parser: argparse.ArgumentParser, dtype: str) -> None:
    _flag(parser, "--dtype", choices=DTYPES, default=dtype, help="type of the written weights (default: %(default)s)")
    _flag(parser, "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    _flag(parser, "--resume", action="store_true", help="take up what a killed run with the same arguments left in OUT")
    _flag(
        parser, "--force", action="store_true", help="go on where configs or norm weights look wrong; shapes must fit"
    )
    _flag(parser, "--hash_sources", action="store_true", help="record a SHA-256 of every source file in the manifest")
    _flag(
        parser,
        "--memory",
        type=int,
        default=256,
        metavar="MIB",
        help="most MiB that the run may take, at any model size (default: %(default)s; on a GPU without torch's own)",
    )
    _flag(parser, "--quiet", action="store_true", help="no progress bar")


def _generation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder of the model, or a hub id")
    _flag(parser, "--path_raw", metavar="BASE", help="in place of MODEL: a base, with its diff; nothing is written")
    _flag(parser, "--path_diff", metavar="DIFF", help="the weight diff for --path_raw")
    _flag(parser, "--max_new_tokens", type=int, default=256, metavar="N", help="tokens at most (default: %(default)s)")
    _flag(parser, "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: %(default)s)")
    _flag(parser, "--top_k", type=int, default=0, metavar="K", help="sample from the K likeliest; 0 is off")
    _flag(
        parser, "--top_p", type=float, default=1.0, metavar="P", help="sample from the likeliest of total probability P"
    )
    _flag(parser, "--min_p", type=float, default=0.0, metavar="P", help="drop tokens below P times the likeliest")
    _flag(parser, "--repetition_penalty", type=float, default=1.0, metavar="R", help="above 1 discourages repetition")
    _flag(parser, "--seed", type=int, default=None, metavar="S", help="makes sampling reproducible")
    _flag(parser, "--stop", action="append", default=[], metavar="TEXT", help="stop before this text (may be repeated)")
    _flag(parser, "--n", type=int, default=1, metavar="N", help="completions for the prompt (default: %(default)s)")
    _flag(parser, "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    _flag(
        parser,
        "--dtype",
        default="auto",
        choices=("auto", *DTYPES),
        help="weights in memory (default: as in the files; float16 with --path_diff)",
    )
    _flag(parser, "--quantize", default=None, choices=("int8", "int4"), help="quantise the matrices while loading")
    _flag(
        parser, "--max_model_len", type=int, default=None, metavar="N", help="positions at most (default: the config's)"
    )
    _flag(
        parser,
        "--cache_dtype",
        default="auto",
        choices=("auto", *DTYPES),
        help="keys and values in memory (default: float32 on the CPU, the weights' type on a GPU)",
    )
    _flag(parser, "--threads", type=int, default=None, metavar="N", help="CPU threads (default: all cores)")


if __name__ == "__main__":
    sys.exit(main())
