"""`baize quantize`: a model with packed matrices, written to a new folder."""

from __future__ import annotations

import argparse

from baize_engine.cli.options import flag, path
from baize_engine.cli.signals import interrupted_once


def quantize_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize quantize`."""
    flag(parser, "--path", required=True, type=path, metavar="MODEL", help="folder of the model, or a hub id")
    flag(
        parser,
        "--path_quantized",
        required=True,
        type=path,
        metavar="OUT",
        help="folder to write, new or empty",
    )
    flag(
        parser,
        "--weights",
        choices=("int8", "int4"),
        default="int8",
        help="type of the matrices (default: %(default)s)",
    )
    flag(
        parser,
        "--follow_links",
        action="store_true",
        help="also copy config, tokenizer and licence files that are symbolic links out of their folder",
    )


def run_quantize(options: argparse.Namespace) -> int:
    """Writes a model again with packed matrices."""
    from baize_engine.model.quantize import quantize

    with interrupted_once():
        done = quantize(options.path, options.path_quantized, options.weights, follow_links=options.follow_links)
    print(
        f"{done.folder}: {options.weights} matrices, {done.bytes_after / 1e9:.3f} GB instead of "
        f"{done.bytes_before / 1e9:.3f} GB"
    )
    return 0
