"""Chat messages to token ids in the format that open-instruct's models were trained on.

    <|system|>\\n…\\n   (optional)   <|user|>\\n…\\n   <|assistant|>\\n…</s>\\n   …   <|assistant|>\\n

The tags are plain text; only BOS (once, in front) and the end-of-sequence *id* after each reply are special, and neither
can come from a message: "</s>" in one is encoded as those four characters. A message can, however, contain the tags.
BOS is there whatever add_bos_token says, as in training. A reply is closed by the tokenizer's end token, as open-instruct's
code did it: "</s>", or what tokenizer_config.json calls eos_token where it names another ("<|im_end|>").

Contents are stripped of surrounding white space, as training did. What follows an end id continues the text: it gets no
dummy space, so the newline is the one token that the format shows (transformers 5 encodes the same string alike).
Training with transformers 4.29 differed there, as measured with 4.29.2: its tokenizer dropped the newline after "</s>"
and put a dummy space before the next "<|user|>". We keep the published format; first turns are equal in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from baize_engine.errors import RequestError, ValueRefused
from baize_engine.text.tokenizer import Tokenizer

Message = Mapping[str, str]


def render(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids, ending with "<|assistant|>\\n". RequestError names the message by its index.

    An optional system message first, then user and assistant in turn, the user first and last.
    """
    _check(messages)
    if tokenizer.bos_id is None or tokenizer.eos_id is None:
        raise RequestError("the chat format needs a tokenizer with a begin and an end token")
    ids = [tokenizer.bos_id]
    text, fresh = "", True  # fresh: no id of this prompt's text is out yet, so the dummy space belongs to it
    for message in messages:
        text += f"<|{message['role']}|>\n{message['content'].strip()}"
        if message["role"] == "assistant":
            ids += tokenizer.encode(text, add_bos=False, continues=not fresh)
            ids.append(tokenizer.eos_id)
            text, fresh = "", False
        text += "\n"
    return ids + tokenizer.encode(text + "<|assistant|>\n", add_bos=False, continues=not fresh)


def _check(messages: Sequence[Message]) -> None:
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
        raise RequestError(f"messages[{len(messages) - 1}] is the {messages[-1]['role']}'s, wanted the user's last")
