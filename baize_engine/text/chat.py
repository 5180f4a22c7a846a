"""Chat messages to token ids, in the format that open-instruct's models were trained on, and what all formats share.

    <|system|>\n…\n   (optional)   <|user|>\n…\n   <|assistant|>\n…</s>\n   …   <|assistant|>\n

The tags are plain text; only BOS (once, in front) and the end-of-sequence *id* after each reply are special, and neither
can come from a message: "</s>" in one is encoded as those four characters. A message can, however, contain the tags.
BOS is added whatever add_bos_token says, as in training. A reply ends with the tokenizer's EOS token, as in open-instruct's
code: "</s>", or what tokenizer_config.json names as eos_token instead ("<|im_end|>").

Contents are stripped of surrounding white space, as in training. Text after an EOS id gets no dummy space, so the newline
is one token, as the format shows (transformers 5 encodes the string the same way). Training with transformers 4.29 differed
there (measured with 4.29.2): its tokenizer dropped the newline after "</s>" and put a dummy space before the next
"<|user|>". We keep the published format; first turns are equal in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from baize_engine.errors import RequestError, ValueRefused
from baize_engine.text.tokenizer import Tokenizer

Message = Mapping[str, str]


def render(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Render a conversation as prompt ids ending with "<|assistant|>\\n".

    messages: {"role", "content"} each: an optional system message, then user and assistant in turn, the user first and last.
    Raises RequestError, naming the message by its index, or if the tokenizer has no BOS or EOS token.
    """
    check(messages)
    return closed(texts(messages), tokenizer)


def texts(messages: Sequence[Message]) -> list[str]:
    """The format's text of checked messages, cut where a reply ends with the EOS id."""
    parts = [""]
    for message in messages:
        parts[-1] += f"<|{message['role']}|>\n{message['content'].strip()}"
        if message["role"] == "assistant":
            parts.append("")
        parts[-1] += "\n"
    parts[-1] += "<|assistant|>\n"
    return parts


def closed(parts: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """The BOS id, then the texts with the EOS id between them. RequestError if the tokenizer lacks one of the two."""
    if tokenizer.bos_id is None or tokenizer.eos_id is None:
        raise RequestError("the chat format needs a tokenizer with a BOS and an EOS token")
    ids = [tokenizer.bos_id, *tokenizer.encode(parts[0], add_bos=False)]
    for part in parts[1:]:
        ids += [tokenizer.eos_id, *tokenizer.encode(part, add_bos=False, continues=True)]
    return ids


def check(messages: Sequence[Message]) -> None:
    """RequestError unless `messages` are as `render` wants them."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise ValueRefused("messages is", messages, ', wanted a non-empty list of {"role": …, "content": …}')
    wanted: tuple[str, ...] = ("system", "user")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise ValueRefused(f"messages[{i}] is", message, ', wanted {"role": …, "content": …}')
        if message["role"] not in wanted:
            raise ValueRefused(f"messages[{i}] has role", message["role"], f", wanted {' or '.join(wanted)} there")
        if not isinstance(message["content"], str):
            raise ValueRefused(f"messages[{i}] has content", message["content"], ", wanted a string")
        wanted = ("assistant",) if message["role"] == "user" else ("user",)
    if messages[-1]["role"] != "user":
        last = len(messages) - 1
        raise RequestError(f"messages[{last}], the last, has role {messages[last]['role']!r}, wanted 'user'")
