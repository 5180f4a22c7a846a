"""`baize chat`: a conversation, typed or piped."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from baize_engine.cli_answer import SOME_FAILED
from baize_engine.cli_options import (
    check_model_options,
    flag,
    load_engine,
    model_options,
    sampling_options,
    sampling_params,
)
from baize_engine.cli_signals import Terminated
from baize_engine.cli_streams import input_bytes, need_output, tell, text
from baize_engine.errors import RequestError

if TYPE_CHECKING:
    from baize_engine.engine import Engine
    from baize_engine.generation.params import SamplingParams

Messages = list[dict[str, str]]


def chat_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize chat`."""
    flag(
        parser,
        "--keep_last",
        action="store_true",
        help="where the conversation is longer than the model's context drop its oldest turns, and say so",
    )
    sampling_options(parser)
    model_options(parser)


def chat(options: argparse.Namespace) -> int:
    """Answers what is typed, or each line of standard input; exits with 3 where a piped line got no answer."""
    check_model_options(options)
    params = sampling_params(options)
    need_output("the answers")
    lines = input_bytes("the messages")
    shown = sys.stdin.isatty() and sys.stdout.isatty()
    with load_engine(options) as engine:
        if shown:
            print("Type a message; /new starts over, /exit or Ctrl-D leaves.")
        talk = _Talk(engine, params, options.keep_last)
        while True:
            try:
                line = input("you> ").encode(errors="surrogateescape") if shown else lines.readline()
            except EOFError:
                break
            if (not line and not shown) or not talk.take(line):
                break
    return SOME_FAILED if talk.unanswered and not shown else 0


class _Talk:
    """A conversation so far. A message that gets no answer is none of its messages."""

    def __init__(self, engine: Engine, params: SamplingParams, keep_last: bool) -> None:
        self._engine, self._params, self._keep_last = engine, params, keep_last
        self._messages: Messages = []
        self.unanswered = 0

    def take(self, line: bytes) -> bool:
        """Does what a line asks for; whether the conversation goes on."""
        try:
            message = text(line, "a message; it was left out").strip()
            if message == "/exit":
                return False
            if message == "/new":
                self._messages = []
            elif message:
                self._answer([*self._messages, {"role": "user", "content": message}])
        except RequestError as error:
            self.unanswered += 1
            tell(str(error))
        return True

    def _answer(self, messages: Messages) -> None:
        """Prints the reply to the last message as it comes; Ctrl-C ends the reply, and not the conversation."""
        messages, ids = self._fitting(messages)
        pieces = []
        try:
            for piece in self._engine.stream(ids, self._params):
                print(piece, end="", flush=True)
                pieces.append(piece)
            print()
        except Terminated:
            raise
        except KeyboardInterrupt:
            print()
        self._messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]

    def _fitting(self, messages: Messages) -> tuple[Messages, list[int]]:
        """The messages that fit the context with a reply, and their ids. RequestError says how many tokens are left."""
        most, before = self._engine.max_model_len - 1, len(messages) // 2  # turns, a message and its reply each
        ids, alone = self._engine.chat_ids(messages), self._engine.chat_ids(messages[-1:])
        if self._keep_last and len(alone) <= most:
            room = min(self._params.max_new_tokens, most // 2)
            while len(ids) + room > most and len(messages) > 1:
                messages = messages[2:]
                ids = self._engine.chat_ids(messages)
            if len(messages) // 2 < before:
                tell(
                    f"{before - len(messages) // 2} of the {before} turns so far were dropped, the oldest, to make room"
                )
        if len(ids) > most:
            others = len(self._engine.chat_ids([*messages[:-1], {"role": "user", "content": ""}]))
            remedy = "/new starts over, and --keep_last drops the oldest turns"
            raise RequestError(
                f"the message has {len(ids) - others} tokens, and {max(0, most - others)} are left of the {most + 1} that the "
                f"context has: it was left out, {remedy if len(alone) <= most else 'wanted a shorter one'}"
            )
        return messages, ids
