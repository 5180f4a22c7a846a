"""`baize make_diff`: the inverse of `baize recover`."""

from __future__ import annotations

import argparse

from baize_engine.cli.foreign_options import MAKE_DIFF
from baize_engine.cli.options import flag, path
from baize_engine.cli.recover import (
    fill_paths,
    path_arguments,
    print_lines,
    recovery_flags,
    recovery_settings,
    tell_outputs,
)
from baize_engine.cli.signals import interrupted_once
from baize_engine.cli.spelling import CommandParser


def make_diff_options(parser: CommandParser) -> None:
    """The options of `baize make_diff`."""
    parser.foreign = MAKE_DIFF
    flag(parser, "--path_raw", type=path, metavar="BASE", help="the base: a folder or a hub id, as for recover")
    flag(parser, "--path_tuned", type=path, metavar="TUNED", help="the finetuned model: a folder or a hub id")
    flag(
        parser,
        "--path_diff",
        type=path,
        metavar="OUT",
        help="folder to write, new or empty (default: beside the finetuned model, x-diff for x)",
    )
    path_arguments(parser, "BASE TUNED OUT")
    recovery_flags(parser, dtype={"default": "float32"})


def run_make_diff(options: argparse.Namespace) -> int:
    """Writes the difference of a finetuned model and its base."""
    from baize_engine.recovery.make_diff import make_diff
    from baize_engine.recovery.output_name import diff_beside
    from baize_engine.recovery.result import describe

    fill_paths(options, ("path_raw", "path_tuned", "path_diff"))
    if options.path_diff is None:
        options.path_diff = str(diff_beside(options.path_tuned))
        tell_outputs("--path_diff", [options.path_diff])
    with interrupted_once():
        result = make_diff(options.path_raw, options.path_tuned, options.path_diff, **recovery_settings(options))
    print_lines(describe(result))
    return 0
