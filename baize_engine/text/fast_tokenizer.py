"""A tokenizer.json as a Tokenizer, through the tokenizers library. Knows no model, no chat format.

Ids are those of transformers' fast tokenizers for the same file, its post-processor included, with one difference: special
tokens spelled in a text are text. The library leaves them alone if it is told to; a vocabulary that also has them as ordinary
tokens ("<s>" of a unigram model) gives them away all the same, and such a text is cut within them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models

from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
from baize_engine.checkpoint.vocabulary_files import FAST
from baize_engine.errors import BaizeError, CheckpointError, RequestError
from baize_engine.printable import brief, shown
from baize_engine.text.fast_pieces import pieces_by
from baize_engine.text.special_ids import Own, TextIds, text_ids
from baize_engine.text.tokenizer import Tokenizer

_PANIC = "PanicException"  # of pyo3, a BaseException that has no name to import
_NO_DUMMY: dict[str, dict[str, Any]] = {
    "Metaspace": {"prepend_scheme": "never"},
    "ByteLevel": {"add_prefix_space": False},
}
_UNKNOWN = "\U0010fffd"  # a character that no vocabulary has
_TRIALS = ("a", "0", "\u4e00")  # texts around which a post-processor must put the same


class FastTokenizer(Tokenizer):
    """A tokenizer.json together with the files beside it.

    content: of tokenizer.json. files: the other tokenizer files; errors name those of `files.folder`.
    rows: ids that the model has (rows of its embedding); None: one for each token. Added tokens beyond them are ignored.
    CheckpointError names the file if the library cannot read it, or its decoder or post-processor is of an unknown kind.
    """

    def __init__(self, content: bytes, files: TokenizerFiles | None = None, rows: int | None = None) -> None:
        self.files = files = files or TokenizerFiles()
        self._path = files.folder / FAST
        listed = files.added(0, rows)
        with _naming(self._path, CheckpointError):
            whole = tokenizers.Tokenizer.from_buffer(content)
            whole.no_padding()
            whole.no_truncation()
            if getattr(whole.model, "dropout", None):  # of training: ids would be drawn
                whole.model.dropout = None
            added = _added(whole, files.named_special(), listed, rows)
            bare = _without_dummy(whole)
            # (continues, allow_special) -> the tokenizer for it; all share the model
            self._encoders = {
                (continues, special): _encoder(whole.model, added, bare if continues else whole, special)
                for continues in (False, True)
                for special in (False, True)
            }
            self._all = self._encoders[False, True]
            self._pieces = pieces_by(None if whole.decoder is None else json.loads(whole.decoder.__getstate__()))
            self._special = {token.content: self._all.token_to_id(token.content) for token in added if token.special}
            self._special_ids = frozenset(self._special.values())
            self._size = max(self._all.get_vocab(with_added_tokens=True).values(), default=-1) + 1
            plain = self._encoders[False, False]
            unknown = set(plain.encode(_UNKNOWN, add_special_tokens=False).ids)
            # special ids that a text can get: the model has them as well. One character stays: "!" as padding
            self._given_away = frozenset(
                token_id
                for text, token_id in self._special.items()
                if len(text) > 1 and whole.model.token_to_id(text) is not None
            ).difference(unknown)
            self.ids = _text_ids(whole, plain, files, self.id_of)
        self.rules = self._pieces.rules
        self._rows = max(self._size, rows or 0)

    @property
    def vocab_size(self) -> int:
        return self._size

    @property
    def special_tokens(self) -> Collection[str]:
        return self._special.keys()

    def id_of(self, token: str) -> int | None:
        return self._all.token_to_id(token)

    def piece(self, token_id: int) -> str | bytes:
        if token_id in self._special_ids:
            return b""
        token = self._all.id_to_token(token_id) if 0 <= token_id < self._size else None
        if token is not None:
            return self._pieces.piece(token)
        if 0 <= token_id < self._rows:
            return b""  # a padding row
        raise RequestError(
            f"token id {token_id} stands for no text: the tokenizer has {self._size} ids, the model {self._rows}"
        )

    def _encode(self, text: str, continues: bool, allow_special: bool) -> list[int]:
        found = self._found(text, continues, allow_special)
        if allow_special or self._given_away.isdisjoint(found.ids):
            return list(found.ids)
        spans = zip(found.ids, found.offsets, strict=True)
        cuts = [0, *(begin + 1 for token_id, (begin, _) in spans if token_id in self._given_away), len(text)]
        parts = [text[begin:end] for begin, end in pairwise(cuts)]
        return [token_id for i, part in enumerate(parts) for token_id in self._spelled(part, continues or i > 0)]

    def _spelled(self, part: str, continues: bool) -> list[int]:
        """The ids of a part of a text, character by character if it is a special token even so."""
        found = self._found(part, continues, False)
        if self._given_away.isdisjoint(found.ids):
            return list(found.ids)
        ids: list[int] = []
        for i, character in enumerate(part):
            found = self._found(character, continues or i > 0, False)
            if not self._given_away.isdisjoint(found.ids):
                wanted = "wanted a text without it, or parse_special"
                raise RequestError(f"text has {character!r}, which is a special token to this tokenizer: {wanted}")
            ids += found.ids
        return ids

    def _found(self, text: str, continues: bool, allow_special: bool) -> tokenizers.Encoding:
        with _naming(self._path, RequestError):
            return self._encoders[continues, allow_special].encode(text, add_special_tokens=False)


def _added(
    whole: tokenizers.Tokenizer, named: set[str], listed: Mapping[str, tuple[int, bool]], rows: int | None
) -> list[tokenizers.AddedToken]:
    """The added tokens in the order of their ids: tokenizer.json's, and those of the files beside it that follow on them.

    named: texts that the files call special. listed: the files' own added tokens, text -> (id, special).
    """
    known = whole.get_added_tokens_decoder()
    for text in named:
        found = whole.token_to_id(text)
        # words and single characters occur in any text: "!" as padding, "user" named as special
        if found is not None and found not in known and len(text) > 1 and not text.isalnum():
            known[found] = tokenizers.AddedToken(text, special=True, normalized=False)
    end = max([whole.get_vocab_size(with_added_tokens=True) - 1, *known]) + 1
    for text, (token_id, special) in sorted(listed.items(), key=lambda item: item[1]):
        if token_id == end and text and whole.token_to_id(text) is None:
            known[end] = tokenizers.AddedToken(text, special=special, normalized=not special)
            end += 1
    kept = {token_id: token for token_id, token in known.items() if rows is None or token_id < rows}
    for token in kept.values():
        token.special = token.special or token.content in named
    return [kept[token_id] for token_id in sorted(kept)]


def _encoder(
    model: models.Model, added: list[tokenizers.AddedToken], like: tokenizers.Tokenizer, special: bool
) -> tokenizers.Tokenizer:
    """A tokenizer of the shared `model` that prepares texts as `like` does; special: whether it finds special tokens."""
    made = tokenizers.Tokenizer(model)
    if like.normalizer is not None:
        made.normalizer = like.normalizer
    if like.pre_tokenizer is not None:
        made.pre_tokenizer = like.pre_tokenizer
    made.add_tokens(added)
    made.encode_special_tokens = not special
    return made


def _without_dummy(whole: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Without a vocabulary, but with what prepares a text for that of `whole`, except what puts a space in front of it."""
    parts = {"normalizer": _plain(_json(whole.normalizer)), "pre_tokenizer": _plain(_json(whole.pre_tokenizer))}
    bare = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return tokenizers.Tokenizer.from_str(json.dumps({**bare, **parts}))


def _json(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _plain(part: Any) -> Any:
    if isinstance(part, list):
        return [each for each in map(_plain, part) if each is not None]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend":
        return None
    plain = {key: _plain(value) for key, value in part.items()}
    return plain | _NO_DUMMY.get(str(part.get("type")), {})


def _text_ids(
    whole: tokenizers.Tokenizer, plain: tokenizers.Tokenizer, files: TokenizerFiles, id_of: Callable[[str], int | None]
) -> TextIds:
    """The BOS and EOS id: those that the post-processor puts around a text, else the tokens that the files name.

    plain: the tokenizer without a post-processor.
    """
    before, behind = _around(whole, plain)
    ids = text_ids(files, Own(), id_of)
    passed = list(ids.passed_over)
    for key, has in (("add_bos_token", bool(before)), ("add_eos_token", bool(behind))):
        if files.config.get(key) not in (None, has):
            passed.append(f"{key} in tokenizer_config.json: {FAST} decides, and says {json.dumps(has)}")
    ids = replace(ids, adds_bos=bool(before), adds_eos=bool(behind), passed_over=tuple(passed))
    if before:
        ids = replace(ids, bos_id=before[0], bos_why=f"the post-processor of {FAST} adds it")
    if behind:
        ids = replace(ids, eos_id=behind[0], eos_why=f"the post-processor of {FAST} adds it")
    return ids


def _around(whole: tokenizers.Tokenizer, plain: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """What the post-processor puts before and behind a text, by trial. CheckpointError unless that is at most an id each."""
    found: set[tuple[tuple[int, ...], tuple[int, ...]] | None] = set()
    for text in _TRIALS:
        bare, full = plain.encode(text, add_special_tokens=False).ids, whole.encode(text).ids
        at = next((at for at in range(2) if full[at : at + len(bare)] == bare), None)
        if bare:
            found.add(None if at is None else (tuple(full[:at]), tuple(full[at + len(bare) :])))
    one = found.pop() if len(found) == 1 else None
    if one is None or len(one[1]) > 1:
        raise CheckpointError(
            f"the post-processor is {brief(_json(whole.post_processor))}, wanted at most a token on each side of a text"
        )
    return list(one[0]), list(one[1])


@contextmanager
def _naming(path: Path, kind: type[BaizeError]) -> Iterator[None]:
    """Errors of the library, which has no type of its own for them, as errors of ours that name the file."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except RequestError:
        raise
    except BaseException as bad:
        if not isinstance(bad, Exception) and type(bad).__name__ != _PANIC:
            raise
        raise kind(f"{path}: the tokenizers library refuses it ({shown(str(bad))})") from bad
