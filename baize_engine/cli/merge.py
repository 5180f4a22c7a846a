"""`baize merge`: the answers of all shards of a file of prompts as one file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from baize_engine.cli.exit_codes import DONE, SOME_FAILED
from baize_engine.cli.options import flag, path
from baize_engine.cli.streams import output_bytes

STANDARD = "-"
MERGED = "all.jsonl"  # in the folder of the shards


def merge_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize merge`."""
    parser.add_argument(
        "folder", type=path, metavar="OUT", help="folder that generate --shard I/N wrote its answers to"
    )
    where = f"file to write, which must be new (default: {MERGED} in OUT); - writes to standard output"
    flag(parser, "--output", type=path, metavar="FILE", help=where)


def run_merge(options: argparse.Namespace) -> int:
    """Merges shards whose files are complete."""
    from baize_engine.batch.merge import complete_shards, pieces, write_answers

    shards = complete_shards(Path(options.folder))
    if options.output == STANDARD:
        report, output, stream = sys.stderr, "standard output", output_bytes()
        stream.writelines(pieces(shards))
        stream.flush()
    else:
        report, output = sys.stdout, options.output or str(Path(options.folder) / MERGED)
        write_answers(shards, Path(output))
    failed = sum(shard.failed for shard in shards)
    print(f"{output}: {sum(shard.records for shard in shards)} records, {failed} of them errors", file=report)
    return SOME_FAILED if failed else DONE
