"""Conversations as texts, which the harness puts into its prompts and has encoded later. Knows no engine and no request."""

from __future__ import annotations

from collections.abc import Sequence

from baize_engine.errors import RequestError
from baize_engine.text.chat import Message
from baize_engine.text.chat_formats import AUTO, DEFAULT, TEMPLATE, format_of
from baize_engine.text.chat_template import ChatTemplate
from baize_engine.text.incremental import IncrementalDecoder
from baize_engine.text.tokenizer import Tokenizer


class Conversations:
    """A tokenizer's chat format. asked: one of chat_formats.CHAT_FORMATS; AUTO: the folder's template, as in transformers.

    RequestError if the folder's template is asked for, and there is none.
    """

    def __init__(self, tokenizer: Tokenizer, asked: str = AUTO) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate.of(tokenizer) if asked in (AUTO, TEMPLATE) else None
        self._format = DEFAULT if self._template is not None else format_of(tokenizer, asked)

    @property
    def template(self) -> str:
        """The template's source, or the name of a format that needs none."""
        return self._format.name if self._template is None else self._template.source

    def text(self, messages: Sequence[Message], reply_begins: bool = True) -> str:
        """A conversation up to where the reply begins, or else up to the end of the assistant's last message, which goes on.

        Without the BOS token, unless the template writes it. RequestError as `chat.render` or `ChatTemplate.text` raise it.
        """
        if self._template is not None:
            text = self._template.text(messages, reply_begins)
            return text if reply_begins else _through(text, messages[-1]["content"])
        if reply_begins:
            return self._spelled(self._format.render(messages, self._tokenizer))
        ids = self._format.render([*messages, {"role": "user", "content": ""}], self._tokenizer)
        end = self._tokenizer.eos_id
        if end in ids:  # the last one ends the message
            return self._spelled(ids[: len(ids) - 1 - ids[::-1].index(end)])
        return self._spelled(ids).removesuffix("\n")  # raw has a line break there instead

    def _spelled(self, ids: list[int]) -> str:
        """The text that is encoded as `ids`, which may begin with the BOS token."""
        names = {self._tokenizer.id_of(text): text for text in self._tokenizer.special_tokens}
        decoder = IncrementalDecoder(self._tokenizer)
        begin = int(ids[:1] == [self._tokenizer.bos_id])
        parts = [decoder.flush() + names[each] if each in names else decoder.push(each) for each in ids[begin:]]
        return "".join(parts) + decoder.flush()


def _through(text: str, message: str) -> str:
    """A rendered conversation through its last message, with the spaces behind it if the template keeps them."""
    begin = text.rfind(message.strip())
    if begin < 0:
        raise RequestError("the chat template leaves out the last message, which the reply is to continue")
    whole = message.lstrip()
    return text[:begin] + (whole if text.startswith(whole, begin) else message.strip())
