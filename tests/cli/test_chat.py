"""`baize chat` as it is typed and piped: what fits the context, bad bytes, Ctrl-C, and what the exit code tells."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chats import Terminal, command, conversation, piped

from baize_engine import Engine, SamplingParams
from baize_engine.cli.chat import HELP, _Talk

WORDS = "the cat sat on the mat and saw the big red ball"


def test_lines_of_a_pipe_are_messages_of_one_conversation(folder: Path) -> None:
    wanted = conversation(folder, "hello", WORDS)
    code, out, err = piped(folder, f"hello\n\n  {WORDS}  \n/exit\nnever read\n".encode())
    assert (code, out, err) == (0, "".join(reply + "\n" for reply in wanted), [])
    wanted += conversation(folder, "who are you")
    code, out, err = piped(folder, f"hello\n{WORDS}\n/new\nwho are you".encode())
    assert (code, out, err) == (0, "".join(reply + "\n" for reply in wanted), [])


def test_speculation_changes_no_reply_and_is_told_at_the_end(folder: Path) -> None:
    wanted = conversation(folder, "hello", WORDS)
    code, out, err = piped(folder, f"hello\n{WORDS}\n".encode(), "--speculate", "ngram")
    assert (code, out) == (0, "".join(reply + "\n" for reply in wanted))
    (line,) = err
    assert re.fullmatch(r"baize: speculation: .+, [\d.]+ tok/step, ~[\d.]+x \(estimated\)", line)


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
    assert "the message has 13 tokens, but only " in line
    assert "of the context's 72 are left: it was left out, /new starts over, and --keep_last" in line


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
    unknown = "baize: {} is not a command and was not sent: /help lists the commands, and /{} sends it as a message"
    assert err == [unknown.format(*["/the cat"] * 2), *HELP, unknown.format(*["/new now"] * 2)]
    assert all(any(line.startswith(name + " ") for line in HELP) for name in ("/help", "/new", "/exit", "/quit"))


def asleep(pid: int) -> None:
    """Returns once it waits for a key: a signal that comes right before is seen with the next one, as in all Python.

    A poll, as nothing tells when another process falls asleep, and the prompt is shown before it does.
    """
    deadline = time.monotonic() + 300
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < deadline


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_prompt_ends_the_chat_in_a_line(folder: Path, sent: signal.Signals) -> None:
    terminal = Terminal(command(folder))
    terminal.read_until(b"you> ")
    asleep(terminal.child.pid)
    terminal.child.send_signal(sent)
    terminal.child.send_signal(signal.SIGTERM)  # and once more, at its end
    code = terminal.end()
    assert b"Traceback" not in terminal.shown
    if sent == signal.SIGINT:
        assert b"half-written" not in terminal.shown
    assert code in (130, -signal.SIGTERM)


def test_what_is_typed_is_answered(folder: Path) -> None:
    (reply,) = conversation(folder, "hello")
    terminal = Terminal(command(folder), real=True)
    terminal.say(b"hello\n")
    terminal.say(b"\x04")  # Ctrl-D
    assert terminal.end() == 0
    assert reply.encode().replace(b"\n", b"\r\n") + b"\r\n" in terminal.everything


class Interrupted:
    """An engine whose replies end by Ctrl-C."""

    max_model_len = 64

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        return [1] * len(messages)

    def stream(self, ids: list[int], params: object) -> Iterator[str]:
        yield "the"
        raise KeyboardInterrupt


def test_ctrl_c_ends_a_reply_but_under_torchrun_the_chat(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = _Talk(Interrupted(), SamplingParams(), False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert talk.take(b"hello\n")
    assert capsys.readouterr().out == "the\n"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(KeyboardInterrupt):
        talk.take(b"hello\n")
