"""`baize recover`, and the arguments that it shares with `baize make_diff`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from baize_engine.cli.foreign_options import RECOVER
from baize_engine.cli.options import field_flags, field_values, flag, path
from baize_engine.cli.signals import interrupted_once
from baize_engine.cli.spelling import CommandParser
from baize_engine.cli.trials import Trials
from baize_engine.recovery.options import RecoveryOptions


def recover_options(parser: CommandParser) -> None:
    """The options of `baize recover`."""
    parser.foreign = RECOVER
    base_help = "the base: a folder in the layout of transformers or of Meta's original release, or a hub id"
    flag(parser, "--path_raw", type=path, metavar="BASE", help=base_help)
    flag(
        parser,
        "--path_diff",
        type=path,
        action="append",
        metavar="DIFF",
        help="the weight diff: a folder or a hub id; repeat it to recover several models while reading the base once",
    )
    flag(
        parser,
        "--path_tuned",
        type=path,
        action="append",
        metavar="OUT",
        help="folder to write, new or empty; one for each --path_diff, in the same order (default: beside the diff, "
        "x-recovered for x-diff)",
    )
    path_arguments(parser, "BASE DIFF OUT")
    recovery_flags(parser)
    flag(
        parser,
        "--expect_sum",
        type=float,
        action="append",
        metavar="SUM",
        help="the sum of all weights that the authors published for weight_diff.py's check; one for each --path_diff",
    )
    flag(
        parser,
        "--expect_sum_atol",
        type=float,
        default=0.01,
        metavar="X",
        help="tolerance of --expect_sum (default: %(default)s, as in alpaca's script; use 0.5 for AlpacaFarm's sums)",
    )
    flag(
        parser,
        "--expect_manifest",
        type=path,
        action="append",
        metavar="FILE",
        help="compare the result with this baize_manifest.json of the same model, recovered elsewhere; one per --path_diff",
    )
    flag(
        parser,
        "--check_integrity_naively",
        action="store_true",
        help="print weight_diff.py's sum of all weights, and compare it with the sum in the diff's folder or with "
        "the sums published for models of this shape",
    )
    flag(
        parser,
        "--test_inference",
        action="store_true",
        default=None,
        help="load the recovered model and ask it a question",
    )
    flag(
        parser,
        "--original_model",
        type=path,
        metavar="MODEL",
        help="also ask this model, a folder or a hub id, and compare the answers; implies --test_inference",
    )


def path_arguments(parser: CommandParser, order: str) -> None:
    """The paths without the options' names, in this order, and how options may be spelled."""
    parser.add_argument(
        "paths", nargs="*", type=path, metavar="PATH", help=f"the paths without option names, in this order: {order}"
    )
    parser.epilog = (
        "Hyphens and underscores are interchangeable. Switches also accept --flag True, --flag=False and --noflag. Paths also "
        "accept FastChat's names: --base-model-path, --target-model-path and --delta-path, or --base, --target and --delta."
    )


def recovery_flags(parser: argparse.ArgumentParser, **changes: Mapping[str, Any]) -> None:
    """A flag for each field of RecoveryOptions that has a help text; `changes` as in `field_flags`."""
    field_flags(parser, RecoveryOptions, changes)
    flag(parser, "--quiet", action="store_true", help="show no progress bar")


def recovery_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags of `recovery_flags` hold, as arguments of `recover` and `make_diff`."""
    return {**field_values(options, RecoveryOptions), "progress": not options.quiet}


def fill_paths(options: argparse.Namespace, order: Sequence[str], lists: Sequence[str] = ()) -> None:
    """Gives positional paths to the path options that were not given, in `order`: that of weight_diff.py's signature.

    `lists`: options that take a list. A usage error where a path is left, or one of the first two options is missing.
    """
    for given in options.paths:
        empty = [name for name in order if getattr(options, name) is None]
        if not empty:
            options.usage_error(
                f"{given}: one path too many; {', '.join(f'--{name}' for name in order)} are given already"
            )
        setattr(options, empty[0], [given] if empty[0] in lists else given)
    missing = [f"--{name}" for name in order[:2] if getattr(options, name) is None]
    if missing:
        options.usage_error(f"the following arguments are required: {', '.join(missing)}")


def run_recover(options: argparse.Namespace) -> int:
    """Writes the sum of base and diff, or of each diff, to its folder; 1 where a trial of the result fails."""
    from baize_engine.recovery.output_name import all_tuned_beside
    from baize_engine.recovery.recover import recover
    from baize_engine.recovery.result import describe

    fill_paths(options, ("path_raw", "path_diff", "path_tuned"), lists=("path_diff", "path_tuned"))
    if options.path_tuned is None:
        options.path_tuned = list(map(str, all_tuned_beside(options.path_diff)))
        tell_outputs("--path_tuned", options.path_tuned)
    if len(options.path_diff) != len(options.path_tuned):
        options.usage_error(
            f"--path_diff is given {len(options.path_diff)} times, --path_tuned {len(options.path_tuned)} times: wanted pairs"
        )
    for name in ("expect_sum", "expect_manifest"):
        given = getattr(options, name)
        if given is not None and len(given) != len(options.path_diff):
            options.usage_error(f"--{name} is given {len(given)} times for {len(options.path_diff)} --path_diff")
    trials = Trials(options)
    with interrupted_once():
        results = recover(
            options.path_raw,
            options.path_diff,
            options.path_tuned,
            **recovery_settings(options),
            expect_sum=options.expect_sum,
            expect_manifest=options.expect_manifest,
            expect_sum_atol=options.expect_sum_atol,
        )
    for result in results:
        print_lines(describe(result))
    return trials.run(results)


def tell_outputs(name: str, folders: Sequence[str]) -> None:
    """Tells before the long work where its result will be."""
    print(f"no {name} was given; the result goes to {', '.join(folders)}", flush=True)


def print_lines(lines: Iterable[str]) -> None:
    """Prints a report; its warnings go to standard error."""
    for line in lines:
        print(line, file=sys.stderr if line.startswith("warning") else sys.stdout)
