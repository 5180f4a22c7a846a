"""Ctrl-C and a polite kill, for commands that clean up behind themselves."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from baize_engine.errors import BaizeError


class Terminated(KeyboardInterrupt):
    """SIGTERM came: all is to end as after Ctrl-C, and what goes on after Ctrl-C as well."""


def terminate_politely() -> None:
    """From now on a first SIGTERM raises Terminated, and any other is ignored: all that it asks for is under way."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def end_quietly() -> None:
    """From now on Ctrl-C and SIGTERM end the process at once, or do nothing where it ends because of one of them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def interrupted_once() -> Iterator[None]:
    """A second Ctrl-C would tear the clean-up that the first began, and leave what it promises to remove.

    What the first becomes on its way out, such as the error of a lock that it broke, is an interruption; a clean-up that
    fails is told.
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
