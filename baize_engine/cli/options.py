"""Options that several commands of `baize` share, and the objects that they are parsed into."""

from __future__ import annotations

import argparse
import os
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from baize_engine.cli.streams import tell
from baize_engine.distributed.world import World
from baize_engine.generation.params import DRAWN_SEEDS, SamplingParams
from baize_engine.options import EngineOptions
from baize_engine.printable import shown
from baize_engine.recovery.options import RecoveryOptions

if TYPE_CHECKING:
    from baize_engine.engine import Engine

MAX_NEW_TOKENS = 256  # by default, of an answer that somebody waits for: the library's default is half as many
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
# fields of RecoveryOptions, with their defaults: what happens to vocabulary rows that a base and its diff do not share
ROWS = {"new_rows": "auto", "drop_rows": False}
_ADD_BOS = {"auto": None, "yes": True, "no": False}


def flag(parser: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    """An option under its documented name, with underscores; a switch also gets its hidden --noNAME.

    The other spellings are CommandParser's.
    """
    dest, hidden = parser.add_argument(name, **settings).dest, argparse.SUPPRESS
    if settings.get("action") == "store_true":
        parser.add_argument(f"--no{name[2:]}", dest=dest, action="store_false", default=hidden, help=hidden)


def field_flags(
    parser: argparse.ArgumentParser,
    options: type,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    without: Collection[str] = (),
) -> None:
    """A flag for each field of the dataclass `options` that has a help text, from its name, type, default and metadata.

    The metadata are argparse's settings, and "flag" where the flag's name is not the field's. changes: other settings for some
    fields, such as how a list is read. without: fields that get no flag.
    """
    types = get_type_hints(options)
    for field in fields(options):
        if "help" not in field.metadata or field.name in without:
            continue
        hint = types[field.name]
        kind = next(each for each in (*get_args(hint), hint) if each is not NoneType)
        settings: dict[str, Any] = {"dest": field.name, "default": field.default, **field.metadata}
        settings |= {"action": "store_true"} if kind is bool else {"type": str if "choices" in settings else kind}
        settings |= (changes or {}).get(field.name, {})
        default = field.default if settings["default"] is None else settings["default"]
        if isinstance(default, (str, int, float)) and kind is not bool:
            settings["help"] += f" (default: {default})"
        flag(parser, settings.pop("flag", f"--{field.name}"), **settings)


def field_values(options: argparse.Namespace, dataclass: type) -> dict[str, Any]:
    """What the flags of `field_flags` hold, by the names of the fields."""
    return {field.name: getattr(options, field.name) for field in fields(dataclass) if field.name in options}


def path(text: str) -> str:
    """argparse's type of files and folders: `~` is the home folder, also after `=` or in quotes, where no shell expands it."""
    if not text.strip():  # a copied command line may end in a backslash and a space
        raise argparse.ArgumentTypeError("the path is empty, wanted a file or a folder")
    return os.path.expanduser(text)


def text(argument: str) -> str:
    """argparse's type of texts: UTF-8, whatever locale Python has decoded the command line with."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"{argument!r} is not UTF-8, wanted text") from None


def model_options(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Which model, and a flag for each field of EngineOptions but those in `without`."""
    parser.add_argument("model", nargs="?", type=path, metavar="MODEL", help="folder of the model, or a hub id")
    base = "in place of MODEL: a base, to which --path_diff is added in memory; nothing is written to disk"
    flag(parser, "--path_raw", type=path, metavar="BASE", help=base)
    flag(parser, "--path_diff", type=path, metavar="DIFF", help="the weight diff to add to --path_raw")
    field_flags(parser, RecoveryOptions, without={field.name for field in fields(RecoveryOptions)} - ROWS.keys())
    field_flags(parser, EngineOptions, {"speculate": {"type": path}}, without)


def prompt_options(parser: argparse.ArgumentParser) -> None:
    """How texts become token ids."""
    special = (
        "turn <s>, </s> and other special tokens spelled out in a prompt into their ids; off by default, because untrusted "
        "text could then end a turn or begin one"
    )
    flag(parser, "--parse_special", action="store_true", help=special)
    begin = (
        "whether a prompt begins with the BOS token: yes, no, or auto, as the tokenizer's files say; does not apply to "
        "messages and token_ids of --input (default: auto)"
    )
    flag(parser, "--add_bos", choices=tuple(_ADD_BOS), default="auto", help=begin)


def text_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags of `prompt_options` ask for, as keyword arguments of Engine's methods."""
    return {"parse_special": options.parse_special, "add_bos": _ADD_BOS[options.add_bos]}


def sampling_options(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """A flag for each field of SamplingParams but those in `without`, and --stop_escaped."""
    ids = {"type": _ids, "metavar": "ID,ID"}
    changes: dict[str, dict[str, Any]] = {
        "max_new_tokens": {"default": MAX_NEW_TOKENS},
        "stop": {"type": _stop, "action": "append", "default": []},
        "logit_bias": {"type": _bias, "action": "append", "default": []},
        "stop_token_ids": ids,
        "banned_token_ids": ids,
        "allowed_token_ids": ids,
    }
    field_flags(parser, SamplingParams, changes, without)
    escaped = r"like --stop, but \n, \t, \r, \\ and \uXXXX are read as escapes (may be repeated)"
    flag(parser, "--stop_escaped", type=_unescaped, action="append", default=[], metavar="TEXT", help=escaped)


def sampling_params(options: argparse.Namespace) -> SamplingParams:
    """The parameters that the flags of `sampling_options` ask for."""
    given = field_values(options, SamplingParams)
    given["stop"] = [*options.stop, *options.stop_escaped]
    given["logit_bias"] = dict(options.logit_bias)
    if len(given["logit_bias"]) != len(options.logit_bias):
        options.usage_error("--logit_bias names a token twice")
    return SamplingParams(**given)


def with_seed(params: SamplingParams) -> SamplingParams:
    """`params` with a seed; one that had to be drawn is printed, so that the same text can be made again."""
    if not params.temperature or params.seed is not None:
        return params
    seed = secrets.randbelow(DRAWN_SEEDS)
    tell(f"--seed {seed}")
    return replace(params, seed=seed)


def engine_options(options: argparse.Namespace) -> EngineOptions:
    """What the flags of `model_options` say of how the model is held."""
    return EngineOptions(**field_values(options, EngineOptions))


def load_engine(options: argparse.Namespace) -> Engine:
    """The model of `model_options`, which `check_model_options` must have passed."""
    settings = asdict(engine_options(options))
    if options.model is not None:
        from baize_engine.checkpoint.hub import folder_of
        from baize_engine.checkpoint.index import read_index

        model = options.model
        if World.of_environment() is None:  # ranks meet first, so that one can tell of another's folder
            model = folder_of(model)
            read_index(model)  # a folder that is no model is refused before torch is imported
        from baize_engine.engine import Engine

        return Engine.from_pretrained(model, **settings)
    from baize_engine.engine import Engine

    if settings["dtype"] == "auto":
        settings["dtype"] = "float16"
    rows = {name: getattr(options, name) for name in ROWS}
    return Engine.from_diff(options.path_raw, options.path_diff, **settings, **rows, progress=True)


def model_folders(options: argparse.Namespace) -> list[Path]:
    """The folders of the model's files: its own, or those of the base and the diff. A hub id's are fetched."""
    from baize_engine.checkpoint.hub import folder_of

    sources = (options.model,) if options.model is not None else (options.path_raw, options.path_diff)
    return [folder_of(source) for source in sources]


def check_model_options(options: argparse.Namespace) -> None:
    """Usage error unless the options name one model, and no option for a diff where there is none."""
    given = [each is not None for each in (options.model, options.path_raw, options.path_diff)]
    if given not in ([True, False, False], [False, True, True]):
        options.usage_error("wanted either MODEL, or --path_raw and --path_diff")
    for name, default in ROWS.items():
        if options.model is not None and getattr(options, name) != default:
            options.usage_error(f"--{name} needs --path_diff: a recovered model already has its rows")


def _stop(argument: str) -> str:
    """The text as it stands; a user who probably meant a line break by a backslash and an n is told how to write one."""
    if found := re.search(r"\\[ntr](?![a-z])", argument):
        tell(
            f"--stop {shown(argument)} has {found[0]} as two characters, a backslash and {found[0][1]}; --stop_escaped reads "
            "them as an escape"
        )
    return text(argument)


def _unescaped(argument: str) -> str:
    """The text, its escapes replaced by the characters that they mean."""

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
