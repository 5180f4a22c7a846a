"""LoadedModel: what an Engine runs, as it comes from a folder or from base + diff. Knows no requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from baize_engine.generation.loop import Loop
from baize_engine.text import chat_formats
from baize_engine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """All that an Engine runs: the loop over the model and its cache, and what text is to it.

    eos_token_ids: ids that end an answer. why_no_text: the reason where there is no tokenizer. chat_format: as it was asked
    for, one of chat_formats.CHAT_FORMATS: which one "auto" is, only the first conversation needs to know. on_close: what else
    is to be done when the engine is closed, after its last step; once or more.
    """

    loop: Loop
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    tokenizer: Tokenizer | None = None
    why_no_text: str = "the engine was made without one"
    chat_format: str = chat_formats.AUTO
    on_close: Callable[[], None] = lambda: None
