"""`baize chat`: a conversation, typed or piped."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from baize_engine.cli.exit_codes import DONE, SOME_FAILED
from baize_engine.cli.line_editing import Typing
from baize_engine.cli.options import (
    check_model_options,
    flag,
    load_engine,
    model_options,
    sampling_options,
    sampling_params,
    with_seed,
)
from baize_engine.cli.signals import Terminated
from baize_engine.cli.streams import input_bytes, need_output, tell, tell_speculation, text
from baize_engine.errors import RequestError
from baize_engine.printable import shown

if TYPE_CHECKING:
    from baize_engine.engine import Engine
    from baize_engine.generation.params import SamplingParams

Messages = list[dict[str, str]]

COMMANDS = {
    "/help": "list these commands",
    "/new": "start a new conversation",
    "/exit": "leave; so do /quit and Ctrl-D",
    "/quit": "leave",
}
HELP = (
    *(f"{name}  {what}" for name, what in COMMANDS.items()),
    "Ctrl-C stops a reply.",
    "To send a message that begins with a slash and a word, double the slash: //word sends /word.",
    "Several lines pasted together are one message; Enter sends it.",
)


def chat_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize chat`."""
    keep = (
        "if the conversation outgrows the model's context, leave out its oldest turns and say so (default); "
        "--nokeep_last refuses the message instead"
    )
    flag(parser, "--keep_last", action="store_true", default=True, help=keep)
    history = (
        "on a terminal, save messages in $XDG_STATE_HOME/baize/chat_history (~/.local/state/...), so that the arrow keys "
        "recall them in later chats (default); --nohistory turns this off"
    )
    flag(parser, "--history", action="store_true", default=True, help=history)
    sampling_options(parser, without=("n", "logprobs"))
    model_options(parser)


def chat(options: argparse.Namespace) -> int:
    """Answers what is typed, or each line of standard input; exits with 3 where a piped line got no answer."""
    check_model_options(options)
    params = with_seed(sampling_params(options))
    need_output("the answers")
    piped = input_bytes("the messages")
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    with load_engine(options) as engine:
        talk = _Talk(engine, params, options.keep_last)
        lines: Iterable[bytes] = Typing(options.history).messages() if terminal else piped
        if terminal:
            print("Type a message. /help lists the commands; /exit or Ctrl-D leaves.")
        for line in lines:
            if not talk.take(line):
                break
        tell_speculation(engine.usage)
    return SOME_FAILED if talk.unanswered and not terminal else DONE


class _Talk:
    """A conversation so far. A message that got no answer is not part of it. unanswered: how many there were."""

    def __init__(self, engine: Engine, params: SamplingParams, keep_last: bool) -> None:
        self._engine, self._params, self._keep_last = engine, params, keep_last
        self._messages: Messages = []
        self.unanswered = 0

    def take(self, line: bytes) -> bool:
        """Answers a message or carries out a command; False where the conversation is to end.

        A line that begins with one slash and a word of letters is a command; with more slashes it is a message, which has one
        slash less. Paths, comments of code and messages of several lines are messages.
        """
        try:
            message = text(line, "a message; it was left out").strip()
            slashes = None if "\n" in message else re.match(r"(/+)[^\W\d_]+(?=\s|$)", message)
            if slashes is not None and slashes[1] == "/":
                return self._obey(message)
            if message:
                self._answer(message if slashes is None else message[1:])
        except RequestError as error:
            self.unanswered += 1
            tell(str(error))
        return True

    def _obey(self, command: str) -> bool:
        """Carries out a command; False where the conversation is to end. RequestError for an unknown one."""
        known = command.casefold()
        if known not in COMMANDS:
            raise RequestError(
                f"{shown(command)} is not a command and was not sent: /help lists the commands, and /{shown(command)} sends it "
                "as a message"
            )
        if known == "/new":
            self._messages = []
        elif known == "/help":
            print(*HELP, sep="\n", file=sys.stderr)
        return known not in ("/exit", "/quit")

    def _answer(self, message: str) -> None:
        """Prints the reply as it comes; Ctrl-C ends the reply but not the conversation, unless torchrun ends that."""
        messages, ids = self._fitting([*self._messages, {"role": "user", "content": message}])
        pieces = []
        try:
            for piece in self._engine.stream(ids, self._params):
                print(piece, end="", flush=True)
                pieces.append(piece)
            print(flush=True)
        except Terminated:
            raise
        except KeyboardInterrupt:
            if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun got it too, and kills its processes after 30 s
                raise
            print(flush=True)
        self._messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]

    def _fitting(self, messages: Messages) -> tuple[Messages, list[int]]:
        """The latest messages that fit the context with a reply, and their ids. RequestError says how many tokens are left."""
        most = self._engine.max_model_len - 1
        turns = len(messages) // 2  # before this message: a message and its reply each
        ids, alone = self._engine.chat_ids(messages), self._engine.chat_ids(messages[-1:])
        if self._keep_last and len(alone) <= most:
            room, whole = min(self._params.max_new_tokens, most // 2), len(ids)
            while len(ids) + room > most and len(messages) > 1:
                messages = messages[2:]
                ids = self._engine.chat_ids(messages)
            dropped = turns - len(messages) // 2
            if dropped:
                tell(
                    f"the oldest {dropped} of {turns} turns, {whole - len(ids)} tokens, were left out to make room in the "
                    f"context of {most + 1} tokens (--nokeep_last refuses the message instead)"
                )
        if len(ids) > most:
            others = len(self._engine.chat_ids([*messages[:-1], {"role": "user", "content": ""}]))
            remedy = "/new starts over, and --keep_last leaves out the oldest turns"
            raise RequestError(
                f"the message has {len(ids) - others} tokens, but only {max(0, most - others)} of the context's {most + 1} are "
                f"left: it was left out, {remedy if len(alone) <= most else 'wanted a shorter one'}"
            )
        return messages, ids
