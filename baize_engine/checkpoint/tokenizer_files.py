"""The files beside a tokenizer's vocabulary, of any version of transformers: added tokens, roles of tokens, chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.file_io import read_whole
from baize_engine.checkpoint.os_errors import is_file
from baize_engine.checkpoint.vocabulary_files import FAST, added_in, fast_text, read_fast
from baize_engine.errors import CheckpointError
from baize_engine.printable import brief

TOKENIZER_CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
TEMPLATE = "chat_template.jinja"
SETTINGS = (TOKENIZER_CONFIG, MAP, ADDED)
MAX_ID_DIGITS = 18
MAX_TEMPLATE = 1 << 20  # bytes


@dataclass(frozen=True)
class TokenizerFiles:
    """The objects in tokenizer_config.json, special_tokens_map.json and added_tokens.json of `folder`; {} if absent.

    `fast_added`: the added tokens in tokenizer.json if no other file lists any, as in folders of transformers 5.
    `template`: the text of chat_template.jinja.
    """

    folder: Path = Path()
    config: Mapping[str, Any] = field(default_factory=dict)
    special_map: Mapping[str, Any] = field(default_factory=dict)
    added_tokens: Mapping[str, Any] = field(default_factory=dict)
    fast_added: Sequence[Any] = ()
    template: str = ""

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        """Read the files in `folder`. CheckpointError names one that is not a JSON object."""
        paths = (folder / name for name in SETTINGS)
        parsed = [strict_json.read_settings(path) if is_file(path) else {} for path in paths]
        template = read_whole(folder / TEMPLATE, MAX_TEMPLATE) if is_file(folder / TEMPLATE) else b""
        return cls._of(folder, parsed, template, lambda: read_fast(folder))

    @classmethod
    def of(cls, contents: Mapping[str, bytes], folder: Path) -> TokenizerFiles:
        """Parse the files among {name: content}; errors name them as files of `folder`."""
        parsed = [strict_json.parse(contents.get(name, b"{}"), str(folder / name), strict=False) for name in SETTINGS]
        return cls._of(folder, parsed, contents.get(TEMPLATE, b""), lambda: fast_text(contents.get(FAST, b"")))

    @classmethod
    def _of(
        cls, folder: Path, parsed: Sequence[Mapping[str, Any]], template: bytes, fast: Callable[[], str | None]
    ) -> TokenizerFiles:
        config, special_map, added = parsed
        listed = added or "added_tokens_decoder" in config
        try:
            text = template.decode()
        except UnicodeDecodeError as bad:
            raise CheckpointError(f"{folder / TEMPLATE}: not UTF-8 at byte {bad.start}") from None
        return cls(folder, config, special_map, added, () if listed else added_in(fast() or ""), text)

    def named(self, key: str) -> tuple[str, str]:
        """(text, file) of the token with the role `key` ("eos_token"); the text is "" if there is none.

        The map takes precedence, unless tokenizer_config.json lists the added tokens: as in transformers.
        """
        files = [(self.special_map, MAP), (self.config, TOKENIZER_CONFIG)]
        if "added_tokens_decoder" in self.config:
            files.reverse()
        for file, name in files:
            if key in file:
                return content_of(file[key]) or "", name
        return "", TOKENIZER_CONFIG

    def roles(self) -> dict[str, str]:
        """The tokens with a role as {"eos_token": "</s>"}: what transformers gives to a chat template."""
        keys = [key for key in (*self.config, *self.special_map) if key.endswith("_token")]
        return {key: text for key in keys if (text := self.named(key)[0])}

    def chat_template(self) -> tuple[str, str]:
        """(source, file) of the chat template; the source is "" if there is none. Of several, the one named "default"."""
        if self.template:
            return self.template, TEMPLATE
        found = self.config.get("chat_template")
        for entry in found if isinstance(found, list) else ():
            if isinstance(entry, dict) and entry.get("name") == "default":
                found = entry.get("template")
        return found if isinstance(found, str) else "", TOKENIZER_CONFIG

    def added(self, first: int, last: int | None) -> dict[str, tuple[int, bool]]:
        """Added tokens as text -> (id, special), for ids in [first, last); None: no upper limit. Others are not checked.

        A token is special if its entry says so or a file gives it a role. CheckpointError names an entry that is not a token
        with its id.
        """
        special = self.named_special()
        found: dict[str, tuple[int, bool]] = {}
        for token_id, entry, where in self._entries():
            if first <= token_id and (last is None or token_id < last):
                text = content_of(entry)
                if text is None:
                    raise CheckpointError(f"{where}: {brief(entry)}, wanted an id and its content")
                found[text] = (token_id, _marked_special(entry) or text in special)
        return found

    def _entries(self) -> Iterator[tuple[int, Any, str]]:
        """(id, entry, where it is) of each added token. An entry is the token's text, or an object with `content`."""
        for text, token_id in self.added_tokens.items():
            where = f"{self.folder / ADDED}: {brief(text)}"
            if type(token_id) is not int or token_id < 0:
                raise CheckpointError(f"{where}: {brief(token_id)}, wanted a token and its id")
            yield token_id, text, where
        for entry in self.fast_added:
            if isinstance(entry, dict) and type(entry.get("id")) is int and content_of(entry):
                yield entry["id"], entry, FAST
        decoder = self.config.get("added_tokens_decoder") or {}
        where = f"{self.folder / TOKENIZER_CONFIG}: added_tokens_decoder"
        if not isinstance(decoder, dict):
            raise CheckpointError(f"{where} is {brief(decoder)}, wanted an object of ids")
        for key, entry in decoder.items():
            if not _is_id(key):
                raise CheckpointError(f"{where} {brief(key)}: {brief(entry)}, wanted an id and its content")
            yield int(key), entry, f"{where} {brief(key)}"

    def listed_special(self) -> dict[str, int]:
        """Tokens that tokenizer_config.json lists as special, text -> id. Malformed entries are ignored."""
        decoder = self.config.get("added_tokens_decoder")
        found: dict[str, int] = {}
        for key, entry in decoder.items() if isinstance(decoder, dict) else ():
            text = content_of(entry)
            if text and _marked_special(entry) and _is_id(key):
                found[text] = int(key)
        return found

    def named_special(self) -> set[str]:
        """The texts of tokens that a file gives a role, singly ("eos_token") or in a list ("additional_special_tokens")."""
        values = [value for key, value in self.config.items() if key.endswith(("_token", "_tokens"))]
        values += self.special_map.values()
        tokens = [token for value in values for token in (value if isinstance(value, list) else [value])]
        return {text for text in map(content_of, tokens) if text is not None}


def content_of(token: Any) -> str | None:
    """The text of a token in either form: a string, or an object with `content`. None for anything else."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _marked_special(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("special") is True


def _is_id(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) <= MAX_ID_DIGITS
