"""How a prompt that is a text is to become ids: what a caller may ask for. Knows no tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from baize_engine.errors import RequestError


@dataclass(frozen=True)
class TextOptions:
    """How prompts that are texts become ids; those that are ids stay as they are. RequestError names a field that cannot be.

    parse_special: the spelling of special tokens means their ids. add_bos, add_eos: whether a begin id comes in front and an
    end id behind; None: as the tokenizer's files say.
    """

    parse_special: bool = False
    add_bos: bool | None = None
    add_eos: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.parse_special, bool):
            raise RequestError(f"parse_special is {self.parse_special!r}, wanted True or False")
        for name in ("add_bos", "add_eos"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise RequestError(f"{name} is {value!r}, wanted True, False or None, as the tokenizer's files say")


AS_FILES_SAY = TextOptions()
