"""`baize recover`, `make_diff`, `verify` and `quantize`: what writes folders, and what checks them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from baize_engine.cli_options import DTYPES, flag
from baize_engine.cli_signals import interrupted_once


def recover_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize recover`."""
    base_help = "folder of the base, in the layout of transformers or Meta's original one, or a hub id"
    flag(parser, "--path_raw", required=True, metavar="BASE", help=base_help)
    flag(
        parser,
        "--path_diff",
        required=True,
        action="append",
        metavar="DIFF",
        help="folder of the weight diff, or a hub id; repeated with --path_tuned, the base is read once for all",
    )
    flag(
        parser,
        "--path_tuned",
        required=True,
        action="append",
        metavar="OUT",
        help="folder to write, one for each --path_diff, in the same order; must be new or empty",
    )
    _combining_options(parser, "float16")
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
        "--expect_manifest",
        action="append",
        metavar="FILE",
        help="baize_manifest.json of the same result, recovered elsewhere; once for each --path_diff",
    )
    flag(parser, "--test_inference", action="store_true", help="load the result and let it answer one question")


def make_diff_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize make_diff`."""
    flag(parser, "--path_raw", required=True, metavar="BASE", help="folder of the base, as for recover")
    flag(parser, "--path_tuned", required=True, metavar="TUNED", help="folder of the finetuned model")
    flag(parser, "--path_diff", required=True, metavar="OUT", help="folder to write; must be new or empty")
    _combining_options(parser, "float32")


def verify_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize verify`."""
    parser.add_argument("folder", metavar="OUT", help="folder written by recover or make_diff, or a hub id")
    flag(parser, "--expect_manifest", metavar="FILE", help="another manifest to compare the tensors of OUT with")


def quantize_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize quantize`."""
    flag(parser, "--path", required=True, metavar="MODEL", help="folder of the model, or a hub id")
    flag(parser, "--path_quantized", required=True, metavar="OUT", help="folder to write; must be new or empty")
    flag(parser, "--weights", choices=("int8", "int4"), default="int8", help="matrices' type (default: %(default)s)")


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


def run_recover(options: argparse.Namespace) -> int:
    """Writes each diff, added to the base, to its folder."""
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
    with interrupted_once():
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


def run_make_diff(options: argparse.Namespace) -> int:
    """Writes the difference of a finetuned model and its base."""
    from baize_engine.recovery.make_diff import make_diff
    from baize_engine.recovery.result import describe

    with interrupted_once():
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


def run_verify(options: argparse.Namespace) -> int:
    """Compares a folder with its manifest; 1 where they differ."""
    from baize_engine.recovery.verify import verify

    report = verify(options.folder, expect_manifest=options.expect_manifest)
    for problem in report.problems:
        print(f"differs: {problem}")
    good = "as written" if options.expect_manifest is None else f"as {options.expect_manifest} says"
    verdict = good if report.ok else f"{len(report.problems)} difference(s)"
    print(f"{report.folder}: {report.tensors} tensors, {report.bytes / 1e9:.3f} GB: {verdict}")
    return 0 if report.ok else 1


def run_quantize(options: argparse.Namespace) -> int:
    """Writes a model again with packed matrices."""
    from baize_engine.model.quantize import quantize

    with interrupted_once():
        done = quantize(options.path, options.path_quantized, options.weights)
    print(
        f"{done.folder}: {options.weights} matrices, {done.bytes_after / 1e9:.3f} GB where the model had "
        f"{done.bytes_before / 1e9:.3f} GB"
    )
    return 0
