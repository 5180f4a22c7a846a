"""How text prompts are tokenized, as far as a caller may choose. Knows no tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from baize_engine.errors import ValueRefused


@dataclass(frozen=True)
class TextOptions:
    """How text prompts are tokenized; prompts of ids stay as they are. RequestError names a field of the wrong type.

    parse_special: whether special tokens spelled in the text become their ids.
    add_bos, add_eos: whether to add a BOS id in front and an EOS id behind; None: as the tokenizer's files say.
    """

    parse_special: bool = False
    add_bos: bool | None = None
    add_eos: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.parse_special, bool):
            raise ValueRefused("parse_special is", self.parse_special, ", wanted True or False")
        for name in ("add_bos", "add_eos"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise ValueRefused(f"{name} is", value, ", wanted True, False or None (as the tokenizer's files say)")


AS_FILES_SAY = TextOptions()
