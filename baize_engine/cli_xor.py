"""The command `xor`: a finetune that was published as XOR of whole files."""

from __future__ import annotations

import argparse
import sys

from baize_engine.cli_notes import XOR
from baize_engine.cli_options import flag, path
from baize_engine.cli_signals import interrupted_once
from baize_engine.cli_spelling import CommandParser

XOR_HELP = (
    "File by file with the base's file of the same name, gzip data unpacked (OASST 30B, Pygmalion), or NAME.SHA256.enc with "
    "Meta's consolidated.00.pth as the key (BELLE, TechGPT). The result is the published files, byte for byte."
)


def xor_options(parser: CommandParser) -> None:
    """The options of `baize xor`."""
    parser.notes = XOR
    flag(
        parser,
        "--path_raw",
        type=path,
        required=True,
        metavar="BASE",
        help="folder of the base with the very bytes that the payload was made with, or of the key, or a hub id",
    )
    flag(
        parser,
        "--path_payload",
        type=path,
        required=True,
        metavar="PAYLOAD",
        help="folder of the XOR files, or a hub id",
    )
    flag(parser, "--path_tuned", type=path, required=True, metavar="OUT", help="folder to write; must be new or empty")
    flag(
        parser,
        "--expect_md5",
        type=path,
        metavar="FILE",
        help="lines of md5sum's or sha256sum's, such as the model's card: of a name that is there twice the last is the "
        "result's, the one before the base's, which is checked before the work",
    )
    flag(parser, "--resume", action="store_true", help="take up what a killed run of the same files left in OUT")
    flag(
        parser,
        "--follow_links",
        action="store_true",
        help="also take configs and tokenizers that are links to files outside their folder",
    )
    flag(parser, "--quiet", action="store_true", help="no progress bar")


def run_xor(options: argparse.Namespace) -> int:
    """Writes the finetune, and prints what tells that it is the published one."""
    from baize_engine.recovery.xor import xor

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
        print("it was finished before: every byte is as it was written, and nothing was redone")
    elif result.resumed:
        print(f"{result.resumed} file(s) of the interrupted run were whole and were not redone")
    for line in result.told:
        print(line, file=sys.stderr if line.startswith("warning") else sys.stdout)
    return 0
