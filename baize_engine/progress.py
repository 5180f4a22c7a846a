"""Progress bars, where somebody looks: the one place that makes them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def bar(shown: bool, **settings: Any) -> tqdm[Any] | None:
    """tqdm with `settings` where it is `shown` and standard error is a terminal, else None: logs stay clean.

    Not tqdm(disable=True): that too starts a thread, and takes a semaphore that forked processes share. One that is killed
    while it has it leaves all others waiting for ever.
    """
    if not shown or not getattr(sys.stderr, "isatty", lambda: False)():  # it may be None, or what a program put there
        return None
    from tqdm import tqdm  # here: it takes a tenth of a command's start

    return tqdm(**settings)
