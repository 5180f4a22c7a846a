"""Standard streams as they may be: closed, of another encoding than UTF-8, full of bytes that are no text. For all commands."""

from __future__ import annotations

import codecs
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from baize_engine.errors import BaizeWarning, RequestError

_SHOWN = "baize.shown"  # our error handler, by its name among those of codecs


def prepare() -> None:
    """To be called first. Python has None for a stream that was closed (`>&-`); its number must not become a file's.

    What standard output's encoding cannot show becomes "?", and stderr tells so once.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  print() takes None for standard output
    codecs.register_error(_SHOWN, _Replacing())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_SHOWN)


class _Replacing:
    def __init__(self) -> None:
        self._told = False

    def __call__(self, error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        if not self._told:
            self._told = True
            tell(
                f"standard output is {error.encoding}: what it cannot show is ? there "
                "(PYTHONIOENCODING=utf-8 makes it UTF-8; files that are written always are)"
            )
        return "?" * (error.end - error.start), error.end


def tell(line: str) -> None:
    """A line on stderr, if that is open."""
    print(f"baize: {line}", file=sys.stderr)


@contextmanager
def warnings_told() -> Iterator[None]:
    """BaizeWarnings are lines on stderr meanwhile; others are shown as ever."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", BaizeWarning)
        show = warnings.showwarning

        def line(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, BaizeWarning):
                print(f"warning: {message}", file=sys.stderr)
            else:
                show(message, category, *rest, **more)

        warnings.showwarning = line
        yield


def need_output(what: str) -> None:
    """RequestError where standard output, on which `what` would be, is closed."""
    if sys.stdout is None:
        raise RequestError(f"standard output is closed, and {what} would be there: wanted a terminal, a file or a pipe")


def input_bytes(what: str) -> BinaryIO:
    """Standard input, from which `what` comes; RequestError where it is closed."""
    if sys.stdin is None:
        raise RequestError(f"standard input is closed, and {what} would come from there")
    return sys.stdin.buffer


def output_bytes() -> BinaryIO:
    """Standard output."""
    need_output("the answers")
    sys.stdout.flush()
    return sys.stdout.buffer


def text(content: bytes, what: str) -> str:
    """The text of bytes that came from standard input; RequestError where they are not UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as bad:
        raise RequestError(f"standard input is not UTF-8 at byte {bad.start}, wanted {what}") from None
