"""The exit codes of `baize`, beside argparse's 2 for wrong usage."""

from __future__ import annotations

DONE = 0
REFUSED = 1  # the user's files, folders or request cannot be served: one line on stderr, no traceback
SOME_FAILED = 3  # a file of prompts, a pipe of messages or a task was answered, but for some of them
INTERRUPTED = 130
