"""Options that several commands of `baize` share, and the objects that they stand for."""

from __future__ import annotations

import argparse
import os
import re
import secrets
from typing import TYPE_CHECKING, Any

from baize_engine.cli.streams import tell
from baize_engine.printable import shown

if TYPE_CHECKING:
    from baize_engine.engine import Engine
    from baize_engine.generation.params import SamplingParams

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
_ADD_BOS = {"auto": None, "yes": True, "no": False}
DTYPES = ("float16", "bfloat16", "float32")


def flag(parser: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    """An option under its documented name, with underscores; one that is set or not also gets its hidden --noNAME.

    The other spellings are CommandParser's.
    """
    parser.add_argument(name, dest=name[2:], **settings)
    if settings.get("action") == "store_true":
        parser.add_argument(
            f"--no{name[2:]}", dest=name[2:], action="store_false", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def path(text: str) -> str:
    """The type of options and arguments that name a file or a folder: `~` is the home folder, also after `=` or in quotes."""
    if not text.strip():  # of spaces where a line of notes ends in a backslash and one
        raise argparse.ArgumentTypeError("the path is empty, wanted a file or a folder")
    return os.path.expanduser(text)


def text(argument: str) -> str:
    """The type of options that are text: UTF-8, whatever the locale is that Python has read the command's line with."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"{argument!r} is not UTF-8, wanted text") from None


def model_options(parser: argparse.ArgumentParser) -> None:
    """Where the model is, and how it is held."""
    parser.add_argument("model", nargs="?", type=path, metavar="MODEL", help="folder of the model, or a hub id")
    flag(
        parser,
        "--path_raw",
        type=path,
        metavar="BASE",
        help="in place of MODEL: a base, with its diff; nothing is written",
    )
    flag(parser, "--path_diff", type=path, metavar="DIFF", help="the weight diff for --path_raw")
    row_options(parser)
    flag(
        parser,
        "--device",
        default="auto",
        help="auto (a GPU if there is one), cpu, cuda, or cuda:N for the GPU of number N (default: %(default)s)",
    )
    flag(
        parser,
        "--dtype",
        default="auto",
        choices=("auto", *DTYPES),
        help="weights in memory (default: as in the files; float16 with --path_diff)",
    )
    flag(parser, "--quantize", default=None, choices=("int8", "int4"), help="quantise the matrices while loading")
    flag(
        parser,
        "--exact_activations",
        action="store_true",
        help="on a CPU read prompts with quantised weights at full precision, not at 8 bits an activation",
    )
    flag(
        parser, "--max_model_len", type=int, default=None, metavar="N", help="positions at most (default: the config's)"
    )
    flag(
        parser,
        "--cache_tokens",
        type=int,
        default=None,
        metavar="N",
        help="tokens that the KV cache holds, of all prompts that run together (default: 64 times 512 or max_model_len, the "
        "smaller, in half of the free memory at most)",
    )
    flag(
        parser,
        "--cache_dtype",
        default="auto",
        choices=("auto", *DTYPES),
        help="keys and values in memory (default: float32 on the CPU, the weights' type on a GPU)",
    )
    flag(parser, "--threads", type=int, default=None, metavar="N", help="CPU threads (default: all cores)")


def row_options(parser: argparse.ArgumentParser) -> None:
    """What becomes of vocabulary rows that a base and its diff do not share."""
    flag(
        parser,
        "--new_rows",
        choices=("auto", "mean", "zero"),
        default="auto",
        help="what vocabulary rows that the base lacks are added to: its mean row (alpaca, open-instruct), zero (Vicuna v0, "
        "StableVicuna, Wombat, LLaVA, gisting), or auto: zero where they are plainly whole rows (default: %(default)s)",
    )
    flag(
        parser,
        "--drop_rows",
        action="store_true",
        help="leave out the base's last vocabulary rows, where it has more than the other side: rows added by hand",
    )


def prompt_options(parser: argparse.ArgumentParser) -> None:
    """How a text becomes ids."""
    flag(
        parser,
        "--parse_special",
        action="store_true",
        help="<s>, </s> and other special tokens spelled in a prompt become their ids; off by default, because text of "
        "strangers could then end a turn or begin one",
    )
    flag(
        parser,
        "--add_bos",
        choices=tuple(_ADD_BOS),
        default="auto",
        help="whether a begin token comes in front of a text: as the tokenizer's files say (auto, the default), yes, no; "
        "messages and token_ids of --input are not touched",
    )


def text_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags of `prompt_options` ask for, as arguments of Engine's methods."""
    return {"parse_special": options.parse_special, "add_bos": _ADD_BOS[options.add_bos]}


def sampling_options(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of SamplingParams that one sample has."""
    flag(parser, "--max_new_tokens", type=int, default=256, metavar="N", help="tokens at most (default: %(default)s)")
    flag(parser, "--min_new_tokens", type=int, default=0, metavar="N", help="no stop before as many tokens")
    flag(parser, "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: %(default)s)")
    flag(parser, "--top_k", type=int, default=0, metavar="K", help="sample from the K likeliest; 0 is off")
    flag(
        parser, "--top_p", type=float, default=1.0, metavar="P", help="sample from the likeliest of total probability P"
    )
    flag(parser, "--min_p", type=float, default=0.0, metavar="P", help="drop tokens below P times the likeliest")
    flag(
        parser,
        "--repetition_penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="divides what prompt or answer have; above 1 discourages repetition",
    )
    flag(
        parser,
        "--presence_penalty",
        type=float,
        default=0.0,
        metavar="R",
        help="subtracted from the logit of what the answer has",
    )
    flag(
        parser,
        "--frequency_penalty",
        type=float,
        default=0.0,
        metavar="R",
        help="subtracted for each time that the answer has it",
    )
    flag(
        parser,
        "--logit_bias",
        type=_bias,
        action="append",
        default=[],
        metavar="ID=VALUE",
        help="add VALUE to the logit of token ID (may be repeated)",
    )
    flag(parser, "--allowed_token_ids", type=_ids, metavar="ID,ID", help="only these tokens may come")
    flag(parser, "--banned_token_ids", type=_ids, default=(), metavar="ID,ID", help="these tokens may not come")
    flag(parser, "--seed", type=int, default=None, metavar="S", help="makes sampling reproducible")
    flag(
        parser,
        "--stop",
        type=_stop,
        action="append",
        default=[],
        metavar="TEXT",
        help="stop before this text (may be repeated)",
    )
    flag(
        parser,
        "--stop_escaped",
        type=_unescaped,
        action="append",
        default=[],
        metavar="TEXT",
        help=r"the same with \n, \t, \r, \\ and \uXXXX for the characters that they mean, which --stop takes as they stand",
    )
    flag(parser, "--stop_token_ids", type=_ids, default=(), metavar="ID,ID", help="stop at these tokens, too")
    flag(parser, "--ignore_eos", action="store_true", help="go on after the model's own end tokens")


def sampling_params(options: argparse.Namespace) -> SamplingParams:
    """What the flags of `sampling_options`, and --n and --logprobs where the command has them, ask for."""
    from dataclasses import fields

    from baize_engine.generation.params import SamplingParams

    given = {field.name: getattr(options, field.name) for field in fields(SamplingParams) if field.name in options}
    given["stop"] = [*options.stop, *options.stop_escaped]
    bias = dict(options.logit_bias)
    if len(bias) != len(options.logit_bias):
        options.usage_error("--logit_bias names a token twice")
    return SamplingParams(**{**given, "logit_bias": bias})


def with_seed(params: SamplingParams) -> SamplingParams:
    """`params` with a seed, which is told where it had to be drawn."""
    from dataclasses import replace

    from baize_engine.requests import DRAWN_SEEDS

    if not params.temperature or params.seed is not None:
        return params
    seed = secrets.randbelow(DRAWN_SEEDS)
    tell(f"--seed {seed}")
    return replace(params, seed=seed)


def load_engine(options: argparse.Namespace) -> Engine:
    """The model of `model_options`."""
    from baize_engine.engine import Engine

    check_model_options(options)
    names = ("device", "quantize", "max_model_len", "cache_tokens", "threads", "cache_dtype", "exact_activations")
    settings: dict[str, Any] = {name: getattr(options, name) for name in names}
    if options.model is not None:
        return Engine.from_pretrained(options.model, dtype=options.dtype, **settings)
    dtype = "float16" if options.dtype == "auto" else options.dtype
    settings |= {"new_rows": options.new_rows, "drop_rows": options.drop_rows}
    return Engine.from_diff(options.path_raw, options.path_diff, dtype=dtype, progress=True, **settings)


def check_model_options(options: argparse.Namespace) -> None:
    """A usage error unless the options name one model, and say nothing that such a one has not."""
    pair = (options.path_raw, options.path_diff)
    if (options.model is None) == (pair == (None, None)) or (options.model is None and None in pair):
        options.usage_error("wanted MODEL, or --path_raw and --path_diff in its place")
    for name, default in (("new_rows", "auto"), ("drop_rows", False)):
        if options.path_diff is None and getattr(options, name) != default:
            options.usage_error(f"--{name} goes with --path_diff: a model that is recovered already has its rows")


def _stop(argument: str) -> str:
    """The text as it stands; whoever meant a line break by a backslash and an n is told what means one."""
    found = re.search(r"\\[ntr](?![a-z])", argument)
    if found is not None:
        tell(
            f"--stop {shown(argument)} has {found[0]} as two characters, a backslash and {found[0][1]}; --stop_escaped takes "
            "them for the character that they mean"
        )
    return text(argument)


def _unescaped(argument: str) -> str:
    """The text that `argument` spells with backslashes."""

    def character(found: re.Match[str]) -> str:
        spelled = found[0]
        if spelled[1:] in _ESCAPES:
            return _ESCAPES[spelled[1:]]
        if len(spelled) == 6 and not 0xD800 <= int(spelled[2:], 16) < 0xE000:  # half of a pair is no character
            return chr(int(spelled[2:], 16))
        raise argparse.ArgumentTypeError(f"{argument!r} has {spelled}, wanted \\n, \\t, \\r, \\\\ or \\uXXXX")

    return re.sub(r"\\(u[0-9a-fA-F]{4}|.?)", character, text(argument), flags=re.DOTALL)


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted token ids with commas between them, such as 5,29") from None


def _bias(text: str) -> tuple[int, float]:
    token_id, _, value = text.partition("=")
    try:
        return int(token_id), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted a token id and a number, such as 29=-1.5") from None
