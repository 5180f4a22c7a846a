"""Ctrl-C and SIGTERM, for commands that clean up before they end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from baize_engine.errors import BaizeError


class Terminated(KeyboardInterrupt):
    """SIGTERM came. The command ends as after Ctrl-C; what Ctrl-C does not end, a conversation, ends too."""


def terminate_politely() -> None:
    """From now on the first SIGTERM raises Terminated; later ones are ignored, as the process is ending already."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def end_quietly() -> None:
    """From now on Ctrl-C and SIGTERM end the process at once, unless they are ignored because one of them came before."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Lets only the first Ctrl-C or SIGTERM interrupt the block: a second would break off the clean-up that the first began.

    An error that the first one causes on its way out, such as that of a broken lock, is raised as KeyboardInterrupt; the
    BaizeError of a clean-up that failed is raised as it is.
    """
    came = False

    def once(number: int, frame: object) -> None:
        nonlocal came
        came = True
        for taken in before:
            signal.signal(taken, signal.SIG_IGN)
        raise KeyboardInterrupt

    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for taken in before:
            signal.signal(taken, once)
        yield
    except Exception as error:
        if came and not isinstance(error, BaizeError):
            raise KeyboardInterrupt from error
        raise
    finally:
        for taken, handler in before.items():
            signal.signal(taken, handler)
