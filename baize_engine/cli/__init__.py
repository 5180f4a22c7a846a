"""The `baize` command, one file a subcommand: the only place that parses arguments and prints."""
