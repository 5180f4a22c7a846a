"""`baize verify`: a folder that another command wrote, compared with its manifest."""

from __future__ import annotations

import argparse
import sys

from baize_engine.cli.options import flag, path


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
        help="compare the tensors of OUT with this manifest instead of its own",
    )


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
