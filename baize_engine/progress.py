"""Progress bars on a terminal. The only place that creates them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def bar(shown: bool, **settings: Any) -> tqdm[Any] | None:
    """A tqdm bar if `shown` is set and standard error is a terminal, else None, so that logs stay clean.

    settings: keyword arguments of tqdm.

    tqdm(disable=True) would not do: it too starts a thread and takes a semaphore shared by forked processes, and a process
    killed while holding it leaves all others waiting for ever.
    """
    if not shown or not getattr(sys.stderr, "isatty", lambda: False)():  # sys.stderr may be None, or any object
        return None
    from tqdm import tqdm  # imported late: it takes a tenth of a command's start-up time

    return tqdm(**settings)
