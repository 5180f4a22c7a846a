"""Messages typed at a terminal: edited, recalled, pasted. Uses Python's readline module, which is GNU's, libedit's or absent.

Several lines that are pasted together are one message, which the next Enter sends. A terminal in bracketed-paste mode
(`ESC [ ? 2004 h`) puts marks around what is pasted. GNU readline (7.0 and later) reads the marks itself once that is switched
on, which Python does not. libedit does not know them and ends at each line break, so its marks are bound to words that begin
and end a paste here. Without readline the terminal's marks are in the line.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType

from baize_engine.checkpoint.file_io import open_regular
from baize_engine.cli.streams import tell
from baize_engine.errors import BaizeError

PROMPT, MORE = "you> ", "...> "
MARKS = ("\x1b[200~", "\x1b[201~")  # the terminal's, around a paste
WORDS = ("[pasted: ", " :pasted]")  # libedit's macros type what they stand for: no control characters
MOST_ENTRIES = 1000
MOST_BYTES = 1 << 20  # of the history's file, from its end, that are read


class Typing:
    """Reads messages from a terminal. history: earlier messages can be recalled, and new ones are kept in a file."""

    def __init__(self, history: bool) -> None:
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="surrogateescape")  # so that invalid text costs its message, not the chat
        self._readline = _readline()
        self._marks = MARKS if self._readline is None else _bind_marks(self._readline)
        self._history: History | None = None
        self._last = ""
        if self._readline is not None and history:
            self._history = History(history_path())
            for entry in self._history.entries():
                self._readline.add_history(entry)

    def messages(self) -> Iterator[bytes]:
        """The messages as they are typed, until the input ends. Each is one line, or several that were pasted."""
        while True:
            try:
                typed = self._typed()
            except EOFError:
                return
            self._note(typed)
            yield typed.encode(errors="surrogateescape")

    def _typed(self) -> str:
        """A message without the marks around what was pasted in it. EOFError at the end of the input."""
        if self._marks is None:
            return input(PROMPT)
        begin, end = self._marks
        try:
            print("\x1b[?2004h", end="", flush=True)
            typed = input(PROMPT)
            while begin in typed and end not in typed.rpartition(begin)[2]:  # a paste that has not ended
                typed += "\n" + input(MORE)
        finally:
            print("\x1b[?2004l", end="", flush=True)
        return typed.replace(begin, "").replace(end, "")

    def _note(self, typed: str) -> None:
        """Makes `typed` the first entry to be recalled."""
        if self._readline is None or not typed.strip() or typed == self._last:
            return
        self._last = typed
        if not any("\ud800" <= character <= "\udfff" or character == "\0" for character in typed):
            self._readline.add_history(typed)
            if self._history is not None:
                self._history.note(typed)


def _readline() -> ModuleType | None:
    with suppress(ImportError):  # Python can be built without it
        import readline

        readline.set_auto_history(False)
        return readline
    return None


def _bind_marks(readline: ModuleType) -> tuple[str, str] | None:
    """What begins and ends a paste in a line; None where readline itself takes care of that."""
    if "libedit" not in (readline.__doc__ or ""):
        readline.parse_and_bind("set enable-bracketed-paste on")
        return None
    for number, word in zip((200, 201), WORDS, strict=True):
        readline.parse_and_bind(f'bind -s "\\e[{number}~" "{word}"')
    return WORDS


def history_path() -> Path:
    """The history's file, in the user's state folder according to the XDG base directory specification."""
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if os.path.isabs(state) else Path(os.path.expanduser("~")) / ".local" / "state"
    return folder / "baize" / "chat_history"


class History:
    """A file of messages, each a JSON string on a line, readable by its owner only.

    A file that cannot be read or written is reported once, and nothing fails: homes may be full, or missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._told = False

    def entries(self) -> list[str]:
        """The latest MOST_ENTRIES messages, oldest first. A file that has grown to twice as many is cut back to these."""
        if not os.path.lexists(self.path):
            return []
        found: list[str] = []
        grown = False
        with self._telling(), os.fdopen(open_regular(self.path), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MOST_BYTES))
            found = [entry for line in file.read(MOST_BYTES).split(b"\n") if (entry := _entry(line)) is not None]
            grown = size > MOST_BYTES or len(found) > 2 * MOST_ENTRIES
        latest = found[-MOST_ENTRIES:]
        if grown:
            fresh = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            with self._telling(), ExitStack() as stack:
                stack.callback(fresh.unlink, missing_ok=True)
                self._append(fresh, os.O_EXCL, latest)
                os.replace(fresh, self.path)
        return latest

    def note(self, message: str) -> None:
        """Adds a message at the end."""
        with self._telling():
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._append(self.path, os.O_APPEND, [message])

    @staticmethod
    def _append(path: Path, how: int, entries: list[str]) -> None:
        # O_NONBLOCK: does not wait at a pipe
        flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | how
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                os.fchmod(file.fileno(), 0o600)
            file.write("".join(json.dumps(entry) + "\n" for entry in entries).encode())

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (OSError, BaizeError) as error:
            if not self._told:
                self._told = True
                why = error.strerror if isinstance(error, OSError) and error.strerror else error
                tell(f"{self.path}: {why}; messages are not saved for later chats (--nohistory turns saving off)")


def _entry(line: bytes) -> str | None:
    with suppress(ValueError, RecursionError):  # torn, or not ours: UnicodeErrors are ValueErrors
        entry = json.loads(line)
        if isinstance(entry, str) and "\0" not in entry and entry.encode():
            return entry
    return None
