"""The exit codes of `baize`, beside argparse's 2 for wrong usage."""

from __future__ import annotations

DONE = 0
REFUSED = 1  # the user's files, folders or request cannot be served: one line on stderr, no traceback
SOME_FAILED = 3  # some prompts of a file, messages of a pipe or examples of a task got no answer
INTERRUPTED = 130
