"""The `baize` command, one file a subcommand: the only place that parses arguments and prints."""

from baize_engine.cli.command import main

__all__ = ["main"]
