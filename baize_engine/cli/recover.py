"""`baize recover`, `make_diff`, `verify` and `quantize`: what writes folders, and what checks them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from baize_engine.cli.notes import MAKE_DIFF, RECOVER
from baize_engine.cli.options import field_flags, field_values, flag, path
from baize_engine.cli.signals import interrupted_once
from baize_engine.cli.spelling import CommandParser
from baize_engine.cli.trials import Trials
from baize_engine.recovery.options import RecoveryOptions


def recover_options(parser: CommandParser) -> None:
    """The options of `baize recover`."""
    parser.notes = RECOVER
    base_help = "folder of the base, in the layout of transformers or Meta's original one, or a hub id"
    flag(parser, "--path_raw", type=path, metavar="BASE", help=base_help)
    flag(
        parser,
        "--path_diff",
        type=path,
        action="append",
        metavar="DIFF",
        help="folder of the weight diff, or a hub id; repeated, with --path_tuned or without, the base is read once for all",
    )
    flag(
        parser,
        "--path_tuned",
        type=path,
        action="append",
        metavar="OUT",
        help="folder to write, one for each --path_diff, in the same order; must be new or empty (default: beside the diff, "
        "x-diff gives x-recovered)",
    )
    _paths(parser, "BASE DIFF OUT")
    _combining_options(parser)
    flag(
        parser,
        "--expect_sum",
        type=float,
        action="append",
        metavar="SUM",
        help="sum of all weights that the authors published for weight_diff.py's check; once for each --path_diff",
    )
    flag(
        parser,
        "--expect_sum_atol",
        type=float,
        default=0.01,
        metavar="X",
        help="by how much --expect_sum may be missed (default: %(default)s, as alpaca's script; AlpacaFarm's sums: 0.5)",
    )
    flag(
        parser,
        "--expect_manifest",
        type=path,
        action="append",
        metavar="FILE",
        help="baize_manifest.json of the same result, recovered elsewhere; once for each --path_diff",
    )
    flag(
        parser,
        "--check_integrity_naively",
        action="store_true",
        help="print weight_diff.py's sum of all weights, and compare it with the sum in the diff's folder or with "
        "published ones of the same shape",
    )
    flag(
        parser,
        "--test_inference",
        action="store_true",
        default=None,
        help="load the result and let it answer one question",
    )
    flag(
        parser,
        "--original_model",
        type=path,
        metavar="MODEL",
        help="with --test_inference, which it implies: let this model answer, too; a folder or a hub id",
    )


def make_diff_options(parser: CommandParser) -> None:
    """The options of `baize make_diff`."""
    parser.notes = MAKE_DIFF
    flag(parser, "--path_raw", type=path, metavar="BASE", help="folder of the base, as for recover")
    flag(parser, "--path_tuned", type=path, metavar="TUNED", help="folder of the finetuned model")
    flag(
        parser,
        "--path_diff",
        type=path,
        metavar="OUT",
        help="folder to write; must be new or empty (default: beside the finetuned model, x gives x-diff)",
    )
    _paths(parser, "BASE TUNED OUT")
    _combining_options(parser, dtype={"default": "float32"})


def _paths(parser: CommandParser, order: str) -> None:
    parser.add_argument(
        "paths", nargs="*", type=path, metavar="PATH", help=f"{order} without the options' names, in this order"
    )
    parser.epilog = (
        "Hyphens are as good as underscores. Flags are also taken as --flag True, --flag=False and --noflag, and paths by "
        "FastChat's names: --base-model-path, --target-model-path, --delta-path, or --base, --target, --delta."
    )


def verify_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize verify`."""
    parser.add_argument(
        "folder", type=path, metavar="OUT", help="folder written by recover, make_diff or xor, or a hub id"
    )
    flag(
        parser,
        "--expect_manifest",
        type=path,
        metavar="FILE",
        help="another manifest to compare the tensors of OUT with",
    )


def quantize_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize quantize`."""
    flag(parser, "--path", required=True, type=path, metavar="MODEL", help="folder of the model, or a hub id")
    flag(
        parser,
        "--path_quantized",
        required=True,
        type=path,
        metavar="OUT",
        help="folder to write; must be new or empty",
    )
    flag(parser, "--weights", choices=("int8", "int4"), default="int8", help="matrices' type (default: %(default)s)")
    flag(
        parser,
        "--follow_links",
        action="store_true",
        help="also copy config, tokenizer and licence texts that are links to files outside their folder",
    )


def _combining_options(parser: argparse.ArgumentParser, **changes: Mapping[str, Any]) -> None:
    """A flag for each field of RecoveryOptions that has a help text; `changes` as in `field_flags`."""
    field_flags(parser, RecoveryOptions, changes)
    flag(parser, "--quiet", action="store_true", help="no progress bar")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags of `_combining_options` hold, as arguments of `recover` and `make_diff`."""
    return {**field_values(options, RecoveryOptions), "progress": not options.quiet}


def _fill(options: argparse.Namespace, order: Sequence[str], lists: Sequence[str] = ()) -> None:
    """Positional paths to the options that were not given, in the order of weight_diff.py's signature."""
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
    """Writes each diff, added to the base, to its folder."""
    from baize_engine.recovery.output_name import all_tuned_beside
    from baize_engine.recovery.recover import recover
    from baize_engine.recovery.result import describe

    _fill(options, ("path_raw", "path_diff", "path_tuned"), lists=("path_diff", "path_tuned"))
    if options.path_tuned is None:
        options.path_tuned = list(map(str, all_tuned_beside(options.path_diff)))
        _tell_outputs("--path_tuned", options.path_tuned)
    if len(options.path_diff) != len(options.path_tuned):
        options.usage_error(
            f"--path_diff is given {len(options.path_diff)} times and --path_tuned {len(options.path_tuned)}: wanted pairs"
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
            **_settings(options),
            expect_sum=options.expect_sum,
            expect_manifest=options.expect_manifest,
            expect_sum_atol=options.expect_sum_atol,
        )
    for result in results:
        _print_lines(describe(result))
    return trials.run(results)


def _tell_outputs(name: str, folders: Sequence[str]) -> None:
    """Before the long work: where its result will be."""
    print(f"no {name} was given; the result goes to {', '.join(folders)}", flush=True)


def run_make_diff(options: argparse.Namespace) -> int:
    """Writes the difference of a finetuned model and its base."""
    from baize_engine.recovery.make_diff import make_diff
    from baize_engine.recovery.output_name import diff_beside
    from baize_engine.recovery.result import describe

    _fill(options, ("path_raw", "path_tuned", "path_diff"))
    if options.path_diff is None:
        options.path_diff = str(diff_beside(options.path_tuned))
        _tell_outputs("--path_diff", [options.path_diff])
    with interrupted_once():
        result = make_diff(options.path_raw, options.path_tuned, options.path_diff, **_settings(options))
    _print_lines(describe(result))
    return 0


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr if line.startswith("warning") else sys.stdout)


def run_verify(options: argparse.Namespace) -> int:
    """Compares a folder with its manifest; 1 where they differ."""
    from baize_engine.recovery.verify import verify

    report = verify(options.folder, expect_manifest=options.expect_manifest)
    for problem in report.problems:
        print(f"differs: {problem}")
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    good = "as written" if options.expect_manifest is None else f"as {options.expect_manifest} says"
    verdict = good if report.ok else f"{len(report.problems)} difference(s)"
    print(f"{report.folder}: {report.counted}, {report.bytes / 1e9:.3f} GB: {verdict}")
    return 0 if report.ok else 1


def run_quantize(options: argparse.Namespace) -> int:
    """Writes a model again with packed matrices."""
    from baize_engine.model.quantize import quantize

    with interrupted_once():
        done = quantize(options.path, options.path_quantized, options.weights, follow_links=options.follow_links)
    print(
        f"{done.folder}: {options.weights} matrices, {done.bytes_after / 1e9:.3f} GB where the model had "
        f"{done.bytes_before / 1e9:.3f} GB"
    )
    return 0
