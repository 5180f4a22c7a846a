"""`baize chat` as it is typed and piped: what fits the context, bad bytes, Ctrl-C, and what the exit code tells."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli_generate import folder  # noqa: F401

from baize_engine import Engine, SamplingParams

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


def test_lines_of_a_pipe_are_messages_of_one_conversation(folder: Path) -> None:  # noqa: F811
    wanted = conversation(folder, "hello", WORDS)
    code, out, err = piped(folder, f"hello\n\n  {WORDS}  \n/exit\nnever read\n".encode())
    assert (code, out, err) == (0, "".join(reply + "\n" for reply in wanted), [])
    wanted += conversation(folder, "who are you")
    code, out, err = piped(folder, f"hello\n{WORDS}\n/new\nwho are you".encode())
    assert (code, out, err) == (0, "".join(reply + "\n" for reply in wanted), [])


def test_bad_bytes_cost_their_message_and_not_the_conversation(folder: Path) -> None:  # noqa: F811
    wanted = conversation(folder, "hello", WORDS)
    code, out, err = piped(folder, b"hello\nthe \xff cat\n" + WORDS.encode() + b"\n")
    assert out == "".join(reply + "\n" for reply in wanted)
    assert err == ["baize: standard input is not UTF-8 at byte 4, wanted a message; it was left out"]
    assert code == 3


def test_a_message_that_no_longer_fits_is_told_and_the_conversation_goes_on(folder: Path) -> None:  # noqa: F811
    wanted = conversation(folder, WORDS, "a")
    code, out, err = piped(folder, f"{WORDS}\n{WORDS}\na\n".encode(), "--max_model_len", "72")
    assert (code, out) == (3, "".join(reply + "\n" for reply in wanted))  # as if it had never been said
    (line,) = err
    assert "the message has 13 tokens, and " in line
    assert "are left of the 72 that the context has: it was left out, /new starts over, and --keep_last" in line


def test_keep_last_drops_the_oldest_turns_and_says_so(folder: Path) -> None:  # noqa: F811
    """The reply is that of a conversation that began later."""
    (alone,) = conversation(folder, WORDS)
    code, out, err = piped(folder, f"{WORDS}\n{WORDS}\n".encode(), "--max_model_len", "72", "--keep_last")
    assert (code, out) == (0, f"{alone}\n" * 2)
    assert err == ["baize: 1 of the 1 turns so far were dropped, the oldest, to make room"]
    tokens = "the cat " * 200
    code, out, err = piped(folder, f"{WORDS}\n{tokens}\n{WORDS}\n".encode(), "--max_model_len", "72", "--keep_last")
    assert (code, out) == (3, f"{alone}\n" * 2)
    assert "it was left out, wanted a shorter one" in err[0]
    assert len(err) == 2  # and nothing was dropped for it


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, arguments: list[str]) -> None:
        self.ours, theirs = pty.openpty()
        self.child = subprocess.Popen(
            arguments, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True, start_new_session=True
        )
        os.close(theirs)
        self.shown = b""

    def read_until(self, wanted: bytes) -> None:
        deadline = time.monotonic() + 120
        while wanted not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.ours], [], [], 1)[0]:
                self.shown += os.read(self.ours, 4096)

    def end(self) -> int:
        code = self.child.wait(timeout=120)
        while select.select([self.ours], [], [], 0)[0]:
            try:
                self.shown += os.read(self.ours, 4096)
            except OSError:  # all of it was read
                break
        os.close(self.ours)
        return code


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_prompt_ends_the_chat_in_a_line(folder: Path, sent: signal.Signals) -> None:  # noqa: F811
    terminal = Terminal(command(folder))
    terminal.read_until(b"you> ")
    os.kill(terminal.child.pid, sent)
    os.kill(terminal.child.pid, signal.SIGTERM)  # and once more, at its end
    code = terminal.end()
    assert b"Traceback" not in terminal.shown
    if sent == signal.SIGINT:
        assert b"half-written" not in terminal.shown
    assert code in (130, -signal.SIGTERM)


def test_what_is_typed_is_answered(folder: Path) -> None:  # noqa: F811
    (reply,) = conversation(folder, "hello")
    terminal = Terminal(command(folder))
    terminal.read_until(b"you> ")
    os.write(terminal.ours, b"hello\n")
    terminal.read_until(reply.encode().replace(b"\n", b"\r\n") + b"\r\nyou> ")
    os.write(terminal.ours, b"\x04")  # Ctrl-D
    assert terminal.end() == 0
