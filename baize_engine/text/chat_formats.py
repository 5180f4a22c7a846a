"""Chat formats by name, and which one a model has. Each turns a conversation into the ids of a prompt.

- **open_instruct**: `chat`. **template**: the folder's own, `chat_template`. **raw**: the contents, a line break between them.
- **alpaca**: stanford_alpaca's train.py, PROMPT_DICT["prompt_no_input"]; the reply follows "### Response:" at once, as there.
  That data has one turn: later ones repeat the block after the EOS id.
- **vicuna**: FastChat's "vicuna_v1.1", also of v1.3 and v1.5.

A system message takes the place of alpaca's and vicuna's first sentences. As in `chat`, only the BOS id and the EOS id after
a reply are special.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baize_engine.errors import RequestError
from baize_engine.text import chat
from baize_engine.text.chat_template import ChatTemplate
from baize_engine.text.tokenizer import Tokenizer

AUTO, OPEN_INSTRUCT, TEMPLATE = "auto", "open_instruct", "template"
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
_PROBES = (  # of a template: without a system message, which some refuse
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ],
)

Render = Callable[[Sequence[chat.Message], Tokenizer], list[int]]


@dataclass(frozen=True)
class ChatFormat:
    """A chat format. why: who chose it, for `baize info`. render: as `chat.render`, which says what messages may be."""

    name: str
    why: str
    render: Render


def alpaca(messages: Sequence[chat.Message], tokenizer: Tokenizer) -> list[int]:
    chat.check(messages)
    system, turns = _system(messages)
    parts = [ALPACA if system is None else f"{system}\n\n"]
    for message in turns:
        if message["role"] == "user":
            parts[-1] += f"### Instruction:\n{message['content']}\n\n### Response:"
        else:
            parts[-1] += message["content"]
            parts.append("")
    return chat.closed(parts, tokenizer)


def vicuna(messages: Sequence[chat.Message], tokenizer: Tokenizer) -> list[int]:
    chat.check(messages)
    system, turns = _system(messages)
    parts = [VICUNA if system is None else f"{system} "]
    for message in turns:
        if message["role"] == "user":
            parts[-1] += f"USER: {message['content'].strip()} ASSISTANT:"
        else:
            parts[-1] += f" {message['content'].strip()}"
            parts.append("")
    return chat.closed(parts, tokenizer)


def raw(messages: Sequence[chat.Message], tokenizer: Tokenizer) -> list[int]:
    chat.check(messages)
    return tokenizer.encode("\n".join(message["content"] for message in messages), add_eos=False)


RENDERERS: dict[str, Render] = {OPEN_INSTRUCT: chat.render, "alpaca": alpaca, "vicuna": vicuna, "raw": raw}
CHAT_FORMATS = (AUTO, TEMPLATE, *RENDERERS)
DEFAULT = ChatFormat(OPEN_INSTRUCT, "the default", chat.render)


def check_asked(tokenizer: Tokenizer | None, asked: str) -> None:
    """RequestError if `asked` is TEMPLATE and the folder of `tokenizer` has no template. Runs none."""
    if asked == TEMPLATE and tokenizer is not None and ChatTemplate.of(tokenizer) is None:
        raise RequestError(f"chat_format is {asked!r}, and {tokenizer.files.folder} has no chat template")


def format_of(tokenizer: Tokenizer | None, asked: str = AUTO) -> ChatFormat:
    """The format named `asked`, one of CHAT_FORMATS. AUTO: the folder's template, unless it has none or open-instruct's.

    AUTO runs the folder's template, to know what it writes. tokenizer: the folder's; None if it has none, so that no
    conversation will be rendered. RequestError as `check_asked` raises it.
    """
    check_asked(tokenizer, asked)
    if asked in RENDERERS:
        return ChatFormat(asked, "asked for", RENDERERS[asked])
    template = None if tokenizer is None else ChatTemplate.of(tokenizer)
    if template is None:
        return DEFAULT
    if asked == AUTO and _is_open_instruct(template):
        return ChatFormat(OPEN_INSTRUCT, f"the chat template in {template.path.name} writes it", chat.render)
    return ChatFormat(TEMPLATE, f"the chat template in {template.path.name}", template.ids)


def _system(messages: Sequence[chat.Message]) -> tuple[str | None, Sequence[chat.Message]]:
    """The text of the system message, None if there is none, and the other messages."""
    if messages[0]["role"] == "system":
        return messages[0]["content"].strip(), messages[1:]
    return None, messages


def _is_open_instruct(template: ChatTemplate) -> bool:
    """Whether a template writes open-instruct's format, with or without the BOS token in front."""
    bos, eos = template.tokens["bos_token"], template.tokens["eos_token"]
    try:
        return all(template.text(probe).removeprefix(bos) == eos.join(chat.texts(probe)) for probe in _PROBES)
    except RequestError:
        return False  # whatever it refuses or fails at, it is not that format
