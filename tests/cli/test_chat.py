"""`baize chat` as it is typed and piped: what fits the context, bad bytes, Ctrl-C, and what the exit code tells."""

from __future__ import annotations

import ctypes.util
import json
import os
import pty
import re
import readline
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from baize_engine import Engine, SamplingParams
from baize_engine.cli import line_editing
from baize_engine.cli.chat import HELP

WORDS = "the cat sat on the mat and saw the big red ball"
FEW = SamplingParams(max_new_tokens=4, ignore_eos=True)


def command(model: Path, *more: str) -> list[str]:
    options = ["--device", "cpu", "--threads", "1", "--max_new_tokens", "4", "--ignore_eos"]
    return [sys.executable, "-m", "baize_engine", "chat", str(model), *options, *more]


def piped(model: Path, content: bytes, *more: str) -> tuple[int, str, list[str]]:
    done = subprocess.run(command(model, *more), input=content, capture_output=True, timeout=300, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode().splitlines()


def conversation(model: Path, *said: str) -> list[str]:
    """The replies to these messages, one after the other."""
    messages: list[dict[str, str]] = []
    replies = []
    with Engine.from_pretrained(model, device="cpu") as engine:
        for text in said:
            messages.append({"role": "user", "content": text})
            replies.append("".join(engine.stream(engine.chat_ids(messages), FEW)))
            messages.append({"role": "assistant", "content": replies[-1]})
    return replies


def test_lines_of_a_pipe_are_messages_of_one_conversation(folder: Path) -> None:
    wanted = conversation(folder, "hello", WORDS)
    code, out, err = piped(folder, f"hello\n\n  {WORDS}  \n/exit\nnever read\n".encode())
    assert (code, out, err) == (0, "".join(reply + "\n" for reply in wanted), [])
    wanted += conversation(folder, "who are you")
    code, out, err = piped(folder, f"hello\n{WORDS}\n/new\nwho are you".encode())
    assert (code, out, err) == (0, "".join(reply + "\n" for reply in wanted), [])


def test_bad_bytes_cost_their_message_and_not_the_conversation(folder: Path) -> None:
    wanted = conversation(folder, "hello", WORDS)
    code, out, err = piped(folder, b"hello\nthe \xff cat\n" + WORDS.encode() + b"\n")
    assert out == "".join(reply + "\n" for reply in wanted)
    assert err == ["baize: standard input is not UTF-8 at byte 4, wanted a message; it was left out"]
    assert code == 3


def test_the_oldest_turns_go_where_the_conversation_outgrows_the_context(folder: Path) -> None:
    """The reply is that of a conversation that began later."""
    (alone,) = conversation(folder, WORDS)
    for more in ((), ("--keep_last",)):
        code, out, err = piped(folder, f"{WORDS}\n{WORDS}\n".encode(), "--max_model_len", "72", *more)
        assert (code, out) == (0, f"{alone}\n" * 2)
        (line,) = err
        found = re.fullmatch(
            r"baize: the oldest 1 of 1 turns, (\d+) tokens, were left out to make room in the (.*)", line
        )
        assert found is not None
        assert found[2] == "context of 72 tokens (--nokeep_last refuses the message instead)"
        with Engine.from_pretrained(folder, device="cpu") as engine:
            last = {"role": "user", "content": WORDS}
            both = [last, {"role": "assistant", "content": alone}, last]
            assert int(found[1]) == len(engine.chat_ids(both)) - len(engine.chat_ids([last]))


def test_a_message_too_long_for_the_context_drops_nothing(folder: Path) -> None:
    short = conversation(folder, "a", "a")
    code, out, err = piped(folder, f"a\n{'the cat ' * 200}\na\n".encode(), "--max_model_len", "72")
    assert (code, out) == (3, "".join(reply + "\n" for reply in short))
    (line,) = err
    assert "it was left out, wanted a shorter one" in line


def test_nokeep_last_refuses_the_message_and_says_how_many_tokens_are_left(folder: Path) -> None:
    wanted = conversation(folder, WORDS, "a")
    code, out, err = piped(folder, f"{WORDS}\n{WORDS}\na\n".encode(), "--max_model_len", "72", "--nokeep_last")
    assert (code, out) == (3, "".join(reply + "\n" for reply in wanted))  # as if it had never been said
    (line,) = err
    assert "the message has 13 tokens, and " in line
    assert "are left of the 72 that the context has: it was left out, /new starts over, and --keep_last" in line


def test_commands_are_done_and_words_that_are_none_are_told(folder: Path) -> None:
    wanted = conversation(folder, "/usr/a cat", "// a", "/the cat") + conversation(folder, "//the", "/ the")
    typed = [
        "/usr/a cat",
        "/the cat",
        "/help",
        "// a",
        "//the cat",
        "/new now",
        "/NEW",
        "///the",
        "/ the",
        "/Quit",
        "no",
    ]
    code, out, err = piped(folder, "\n".join(typed).encode())
    assert (code, out) == (3, "".join(reply + "\n" for reply in wanted))
    unknown = "baize: {} is no command, and was not sent: /help lists them, and /{} sends it as a message"
    assert err == [unknown.format(*["/the cat"] * 2), *HELP, unknown.format(*["/new now"] * 2)]
    assert all(any(line.startswith(name + " ") for line in HELP) for name in ("/help", "/new", "/exit", "/quit"))


UP, LEFT = b"\x1b[A", b"\x1b[D"
PASTE = b"\x1b[200~%b\x1b[201~"  # as a terminal sends it that was told to mark what is pasted


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, arguments: list[str], **environment: str) -> None:
        self.ours, theirs = pty.openpty()
        given = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "close_fds": True, "start_new_session": True}
        self.child = subprocess.Popen(arguments, **given, env={**os.environ, "TERM": "xterm", **environment})  # type: ignore[call-overload]
        os.close(theirs)
        self.before, self.shown = b"", b""

    def read_until(self, wanted: bytes) -> None:
        deadline = time.monotonic() + 120
        while wanted not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.ours], [], [], 1)[0]:
                self.shown += os.read(self.ours, 4096)

    def say(self, typed: bytes) -> None:
        """Types at the next prompt."""
        self.read_until(b"you> ")
        self.before, self.shown = self.everything, b""
        os.write(self.ours, typed)

    @property
    def everything(self) -> bytes:
        return self.before + self.shown

    def end(self) -> int:
        code = self.child.wait(timeout=120)
        while select.select([self.ours], [], [], 0)[0]:
            try:
                self.shown += os.read(self.ours, 4096)
            except OSError:  # all of it was read
                break
        os.close(self.ours)
        return code


def asleep(pid: int) -> None:
    """Returns once it waits for a key: a signal that comes right before is seen with the next one, as in all Python."""
    deadline = time.monotonic() + 120
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < deadline


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_prompt_ends_the_chat_in_a_line(folder: Path, sent: signal.Signals) -> None:
    terminal = Terminal(command(folder))
    terminal.read_until(b"you> ")
    asleep(terminal.child.pid)
    os.kill(terminal.child.pid, sent)
    os.kill(terminal.child.pid, signal.SIGTERM)  # and once more, at its end
    code = terminal.end()
    assert b"Traceback" not in terminal.shown
    if sent == signal.SIGINT:
        assert b"half-written" not in terminal.shown
    assert code in (130, -signal.SIGTERM)


def test_what_is_typed_is_answered(folder: Path) -> None:
    (reply,) = conversation(folder, "hello")
    terminal = Terminal(command(folder))
    terminal.say(b"hello\n")
    terminal.say(b"\x04")  # Ctrl-D
    assert terminal.end() == 0
    assert reply.encode().replace(b"\n", b"\r\n") + b"\r\n" in terminal.everything


def test_lines_are_edited_and_recalled_also_by_another_chat(folder: Path, tmp_path: Path) -> None:
    """The left arrow was `^[[D` in the message before."""
    replies = conversation(folder, "the cat", "the cats")
    terminal = Terminal(command(folder), XDG_STATE_HOME=str(tmp_path))
    terminal.say(b"e cat" + LEFT * 5 + b"th\n")
    terminal.say(UP + b"s\n")
    terminal.say(b"/exit\n")
    assert terminal.end() == 0
    for reply in replies:
        assert reply.encode().replace(b"\n", b"\r\n") in terminal.everything
    noted = tmp_path / "baize" / "chat_history"
    assert [json.loads(line) for line in noted.read_text().splitlines()] == ["the cat", "the cats", "/exit"]
    assert stat.S_IMODE(noted.stat().st_mode) == 0o600
    terminal = Terminal(command(folder), XDG_STATE_HOME=str(tmp_path))
    terminal.say(UP * 3 + b"\n")
    terminal.say(b"\x04")
    assert terminal.end() == 0
    assert replies[0].encode().replace(b"\n", b"\r\n") in terminal.everything
    before = noted.read_bytes()
    terminal = Terminal(command(folder, "--nohistory"), XDG_STATE_HOME=str(tmp_path))
    terminal.say(UP + b"a\n")
    terminal.say(b"\x04")
    assert terminal.end() == 0
    assert b"exit" not in terminal.everything.rpartition(b"leaves.")[2]
    assert noted.read_bytes() == before


LIBEDIT = ctypes.util.find_library("edit")
MAIN = "from baize_engine.cli import main; sys.exit(main())"
EDITORS = {
    "readline": [sys.executable, "-m", "baize_engine"],
    "libedit": [sys.executable, "-m", "baize_engine"],
    "none": [
        sys.executable,
        "-c",
        "import sys; sys.modules['readline'] = None; from baize_engine.cli import main; sys.exit(main())",
    ],
}


@pytest.mark.parametrize("editor", EDITORS)
def test_pasted_lines_are_one_message(folder: Path, tmp_path: Path, editor: str) -> None:
    """By GNU readline, by libedit in its place (as macOS's Python has it), and without either."""
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    if editor == "libedit":
        if LIBEDIT is None or "GNU" not in (readline.__doc__ or ""):
            pytest.skip("no libedit to put in the place of GNU readline")
        environment["LD_PRELOAD"] = LIBEDIT
    replies = conversation(folder, "the\ncat\n\nsat", "a b\nc", "dog")
    terminal = Terminal([*EDITORS[editor], *command(folder)[3:]], **environment)
    terminal.say(PASTE % b"the\rcat\r\rsat" + b"\n")
    terminal.say(b"a " + PASTE % b"b\rc" + b"\n")
    terminal.say(b"dog\n")
    terminal.say(b"/exit\n")
    assert terminal.end() == 0
    shown = terminal.everything
    for reply in replies:
        before, found, shown = shown.partition(reply.encode().replace(b"\n", b"\r\n"))
        assert found, before
    assert shown.rpartition(b"\x1b[?2004")[2].startswith(b"l")  # and the terminal is as it was


@pytest.mark.parametrize("trouble", ["file in the way", "folder in the way", "closed", "pipe"])
def test_a_history_that_cannot_be_kept_is_told_once_and_costs_nothing(
    folder: Path,
    tmp_path: Path,
    trouble: str,
) -> None:
    (tmp_path / "baize").mkdir()
    if trouble == "file in the way":
        (tmp_path / "baize").rmdir()
        (tmp_path / "baize").write_bytes(b"")
    elif trouble == "folder in the way":
        (tmp_path / "baize" / "chat_history").mkdir()
    elif trouble == "pipe":
        os.mkfifo(tmp_path / "baize" / "chat_history")
    else:
        (tmp_path / "baize" / "chat_history").symlink_to("/proc/self/nowhere/at all")
    replies = conversation(folder, "dog", "the cat")
    terminal = Terminal(command(folder), XDG_STATE_HOME=str(tmp_path))
    terminal.say(b"dog\n")
    terminal.say(b"the cat\n")
    terminal.say(b"\x04")
    assert terminal.end() == 0
    for reply in replies:
        assert reply.encode().replace(b"\n", b"\r\n") in terminal.everything
    assert terminal.everything.count(b"messages are not kept for another chat") == 1


def test_a_bad_byte_that_is_typed_costs_its_message(folder: Path, tmp_path: Path) -> None:
    (reply,) = conversation(folder, "dog")
    terminal = Terminal(command(folder), XDG_STATE_HOME=str(tmp_path))
    terminal.say(b"the \xff cat\n")
    terminal.say(b"dog\n")
    terminal.say(b"\x04")
    assert terminal.end() == 0
    assert b"not UTF-8" in terminal.everything
    assert reply.encode().replace(b"\n", b"\r\n") in terminal.everything


def test_the_history_is_bounded_and_what_is_not_ours_in_it_is_passed_over(tmp_path: Path) -> None:
    history = line_editing.History(tmp_path / "state" / "chat_history")
    assert history.entries() == []
    history.note("two\nlines")
    history.path.chmod(0o644)
    history.note("é")
    assert stat.S_IMODE(history.path.stat().st_mode) == 0o600
    with history.path.open("ab") as file:
        file.write(b'[1]\n{\n"\\ud800"\n"a\\u0000"\n\xff\n' + b"[" * 100_000 + b'\n"torn')
    assert history.entries() == ["two\nlines", "é"]
    history.path.write_text("".join(f'"{i}"\n' for i in range(2 * line_editing.MOST_ENTRIES + 1)))
    latest = [str(i) for i in range(line_editing.MOST_ENTRIES + 1, 2 * line_editing.MOST_ENTRIES + 1)]
    assert history.entries() == latest == history.entries()
    assert len(history.path.read_text().splitlines()) == line_editing.MOST_ENTRIES
    assert stat.S_IMODE(history.path.stat().st_mode) == 0o600
    history.path.write_bytes(b'"' + b"a" * 2 * line_editing.MOST_BYTES + b'"\n"b"\n')
    assert history.entries() == ["b"]
    assert history.path.read_bytes() == b'"b"\n'
