"""The standard streams of every command, which may be closed, in another encoding than UTF-8, or full of invalid text."""

from __future__ import annotations

import codecs
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO

from baize_engine.errors import BaizeWarning, RequestError

if TYPE_CHECKING:
    from baize_engine.generation.usage import Usage

_SHOWN = "baize.shown"  # our error handler, by its name among those of codecs


def prepare() -> None:
    """Makes the streams safe to use; call it first.

    Python has None for a stream that was closed (`>&-`), whose number must not go to the next file that is opened. Characters
    that standard output's encoding lacks become "?", and a line on stderr says so once.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  print() takes None for standard output
    codecs.register_error(_SHOWN, _question_marks())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_SHOWN)


def _question_marks() -> Callable[[UnicodeError], tuple[str, int]]:
    told = cache(tell)  # once a line

    def replaced(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        told(
            f"standard output is {error.encoding}: characters that it lacks are shown as ? "
            "(PYTHONIOENCODING=utf-8 makes it UTF-8; files are always written as UTF-8)"
        )
        return "?" * (error.end - error.start), error.end

    return replaced


def tell(line: str) -> None:
    """Prints a line on stderr, if that is open."""
    print(f"baize: {line}", file=sys.stderr)


def tell_speculation(usage: Usage) -> None:
    """Tells what speculation did, if it was on."""
    if usage.speculation:
        tell(f"speculation: {usage.speculation} (estimated)")


@contextmanager
def warnings_told() -> Iterator[None]:
    """While this is open, each BaizeWarning is a line on stderr; other warnings are shown as usual."""
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
    """RequestError where standard output, which `what` would go to, is closed."""
    if sys.stdout is None:
        raise RequestError(f"standard output is closed, and {what} would go there: wanted a terminal, a file or a pipe")


def input_bytes(what: str) -> BinaryIO:
    """Standard input, which `what` comes from; RequestError where it is closed."""
    if sys.stdin is None:
        raise RequestError(f"standard input is closed, and {what} would come from there")
    return sys.stdin.buffer


def output_bytes() -> BinaryIO:
    """Standard output, for bytes; RequestError where it is closed."""
    need_output("the answers")
    sys.stdout.flush()
    return sys.stdout.buffer


def text(content: bytes, what: str) -> str:
    """Decodes bytes of standard input; RequestError where they are not UTF-8, `what` being wanted."""
    try:
        return content.decode()
    except UnicodeDecodeError as bad:
        raise RequestError(f"standard input is not UTF-8 at byte {bad.start}, wanted {what}") from None
