"""`baize xor`: a finetune that was published as XOR of whole files."""

from __future__ import annotations

import argparse
from pathlib import Path

from baize_engine.cli.foreign_options import XOR
from baize_engine.cli.options import flag, path
from baize_engine.cli.recover import print_lines, tell_outputs
from baize_engine.cli.signals import interrupted_once
from baize_engine.cli.spelling import CommandParser

XOR_HELP = (
    "Each file is unpacked if it is gzip data, and XORed with the base's file of the same name (OASST 30B, Pygmalion); files "
    "named NAME.SHA256.enc are XORed with the key, Meta's consolidated.00.pth (BELLE, TechGPT). The result is the finetune's "
    "original files, byte for byte."
)


def xor_options(parser: CommandParser) -> None:
    """The options of `baize xor`."""
    parser.foreign = XOR
    flag(
        parser,
        "--path_raw",
        type=path,
        metavar="BASE",
        help="the base, byte for byte as the XOR files were made with, or the key: a folder, the key file or a hub id",
    )
    flag(parser, "--path_payload", type=path, metavar="PAYLOAD", help="the XOR files: a folder or a hub id")
    flag(
        parser,
        "--path_tuned",
        type=path,
        metavar="OUT",
        help="folder to write, new or empty (default: beside the XOR files, x-recovered for x-xor)",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=path,
        metavar="PATH",
        help="the paths without option names, in xor_codec.py's order: OUT PAYLOAD BASE; OUT is new, the others exist",
    )
    flag(
        parser,
        "--expect_md5",
        type=path,
        metavar="FILE",
        help="text file with lines as md5sum or sha256sum print them, such as the model's card; if it lists a name twice, the "
        "last sum is the result's, and the one before it the base's, which is checked before the work begins",
    )
    resume = "keep what is finished if the run ends early, and continue such a run of the same files"
    flag(parser, "--resume", action="store_true", help=resume)
    flag(
        parser,
        "--follow_links",
        action="store_true",
        help="also use config and tokenizer files that are symbolic links out of their folder",
    )
    flag(parser, "--quiet", action="store_true", help="show no progress bar")


def _fill(options: argparse.Namespace) -> None:
    """Takes paths without names in xor_codec.py's order, and only where no other order could be meant.

    The order of recover begins with the base, that of decrypt.py with the payload. A usage error where a path is missing, or
    the order is not clear.
    """
    if options.paths:
        named = [name for name in ("path_raw", "path_payload", "path_tuned") if getattr(options, name) is not None]
        if named or len(options.paths) != 3 or not _in_order(*map(Path, options.paths)):
            options.usage_error(
                f"{' '.join(options.paths)}: it is not clear which path is which, wanted baize xor --path_raw BASE "
                "--path_payload PAYLOAD --path_tuned OUT (without these names OUT PAYLOAD BASE, OUT new and the others here)"
            )
        options.path_tuned, options.path_payload, options.path_raw = options.paths
    missing = [f"--{name}" for name in ("path_raw", "path_payload") if getattr(options, name) is None]
    if missing:
        options.usage_error(f"the following arguments are required: {', '.join(missing)}")


def _in_order(out: Path, payload: Path, base: Path) -> bool:
    """Whether only the first can be the output: it is new, empty or of an earlier run, and the others hold files."""
    from baize_engine.checkpoint.manifest import MANIFEST_NAME
    from baize_engine.recovery.journal import JOURNAL_NAME

    there = _names(out)
    can_be_written = not there or MANIFEST_NAME in there or JOURNAL_NAME in there
    return can_be_written and bool(_names(payload)) and bool(_names(base))


def _names(path: Path) -> set[str]:
    """The names of the files in a folder, or of the file itself; empty where there is nothing."""
    from baize_engine.checkpoint.os_errors import reading

    with reading(path):
        if path.is_dir():
            return {each.name for each in path.iterdir()}
        return {path.name} if path.exists() else set()


def run_xor(options: argparse.Namespace) -> int:
    """Writes the finetune, and prints what shows that it is the published one."""
    from baize_engine.recovery.output_name import tuned_beside
    from baize_engine.recovery.result import FINISHED_BEFORE
    from baize_engine.recovery.xor.xor import xor

    _fill(options)
    if options.path_tuned is None:
        options.path_tuned = str(tuned_beside(options.path_payload))
        tell_outputs("--path_tuned", [options.path_tuned])
    with interrupted_once():
        result = xor(
            options.path_raw,
            options.path_payload,
            options.path_tuned,
            options.resume,
            not options.quiet,
            expect_md5=options.expect_md5,
            follow_links=options.follow_links,
        )
    print(f"{len(result.manifest.files)} files in {result.folder}")
    if result.finished_before:
        print(FINISHED_BEFORE)
    elif result.resumed:
        print(f"{result.resumed} file(s) of the interrupted run were complete and were kept")
    print_lines(result.told)
    return 0
