"""Which ids stand around texts and which end them, with the reason of each: from what a model's files say, in JSON's form.

Pure functions of those mappings; `of_folder` reads them. What was decided, and why:

- **End ids** are those of generation_config.json, of config.json, the tokenizer's end token by name ("<|im_end|>") and the
  sentencepiece model's own, together. transformers takes the first file that has any; models end with what they were
  trained with, and one of these is it. -1, null and ids that the model has no row for are none.
- **An end id that is the begin token is none.** Converters of March 2023 wrote bos 0, eos 1, pad -1 into config.json and
  generation_config.json; in LLaMA's vocabulary 1 is <s>. Where no sentencepiece model tells, these three numbers together
  do, and LLaMA's own 2 takes the place of 1. (0, <unk>, stays where a file names it: some finetunes learnt to end with it.)
- **The begin id** is the token that tokenizer_config.json calls bos_token, else the sentencepiece model's own. Where that
  name is the model's end or unknown token, its own is taken: stanford_alpaca's train.py of March 2023 wrote "</s>" as bos,
  eos and unk, and until commit c0f99b4 of April transformers' LLaMA tokenizer took bos_token_id from the sentencepiece
  model whatever the name said (FastChat #167 puts that back for Vicuna), so that these families were trained with <s>.
  Later versions put "</s>" there (stanford_alpaca #193). Likewise "" of early converters, and null.
- **Prompts get the begin id** unless add_bos_token is false, and an end id where add_eos_token is true, as in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.os_errors import is_file
from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
from baize_engine.printable import brief

if TYPE_CHECKING:
    from baize_engine.text.tokenizer import Tokenizer

CONFIG, GENERATION = "config.json", "generation_config.json"
MAX_PASSED = 16  # of the things passed over, how many are told: a file may list millions
# in the vocabulary of LLaMA and Llama-2, and what transformers' LlamaConfig takes where config.json is silent
LLAMA_END = 2
_EARLY = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}


@dataclass(frozen=True)
class Own:
    """The ids that a sentencepiece model itself has for begin, end and unknown; None for one that it has not."""

    bos: int | None = None
    eos: int | None = None
    unk: int | None = None


@dataclass(frozen=True)
class TextIds:
    """What stands around a text by a tokenizer's files. `eos_id` closes a reply in a chat, and a prompt where `adds_eos`.

    `bos_why` and `eos_why` say where the ids come from, `passed_over` what was found and not taken.
    """

    own: Own
    bos_id: int | None
    bos_why: str
    eos_id: int | None
    eos_why: str
    adds_bos: bool
    adds_eos: bool
    passed_over: tuple[str, ...]


@dataclass(frozen=True)
class EndId:
    """An id that ends a text, and what says so."""

    id: int
    why: str


@dataclass(frozen=True)
class SpecialIds:
    """All of a model's: `text` around prompts, `ends` in the order found, `passed_over` as above."""

    text: TextIds
    ends: tuple[EndId, ...]
    passed_over: tuple[str, ...]

    @property
    def end_ids(self) -> tuple[int, ...]:
        return tuple(end.id for end in self.ends)


def text_ids(files: TokenizerFiles, own: Own, id_of: Callable[[str], int | None]) -> TextIds:
    """By the names in a tokenizer's files. `id_of`: the id of a token by its text, None for one that is not in the model."""
    passed: list[str] = []

    def named(key: str, wrong: tuple[int | None, ...], otherwise: int | None) -> tuple[int | None, str]:
        text, file = files.named(key)
        found = id_of(text) if text else None
        if found is not None and found not in wrong:
            return found, f"{key} {brief(text)} in {file}"
        if text:
            what = "no token of this model" if found is None else f"the model's own token of another use, id {found}"
            passed.append(f"{key} {brief(text)} in {file} is {what}")
        return otherwise, "the sentencepiece model's own" if otherwise is not None else "none is known"

    def flag(key: str, default: bool) -> bool:
        value = files.config.get(key)
        if value is not None and not isinstance(value, bool):
            passed.append(f"{key} {brief(value)} in tokenizer_config.json is neither true nor false")
        return value if isinstance(value, bool) else default

    bos, bos_why = named("bos_token", (own.eos, own.unk), own.bos)
    eos, eos_why = named("eos_token", (own.bos, own.unk), own.eos)
    adds_bos = flag("add_bos_token", True) and bos is not None
    adds_eos = flag("add_eos_token", False) and eos is not None
    return TextIds(own, bos, bos_why, eos, eos_why, adds_bos, adds_eos, tuple(passed))


def special_ids(config: Mapping[str, Any], generation: Mapping[str, Any], text: TextIds, vocab_size: int) -> SpecialIds:
    """Those of a model of `vocab_size` rows, by its config.json, generation_config.json and tokenizer."""
    ends: dict[int, str] = {}
    passed = list(text.passed_over)

    def pass_over(what: str) -> None:
        if len(passed) < MAX_PASSED:
            passed.append(what)

    for value, file, early in _told(config, generation):
        why = f"eos_token_id in {file}"
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
            pass_over(f"{why}: {brief(value)} is no token of this model")
        elif value == text.own.bos or (early and text.own == Own()):
            wrote = " (converters of March 2023 wrote it)" if early else ""
            pass_over(f"{why}: {value} is the begin token{wrote}")
            if early and text.own == Own() and vocab_size > LLAMA_END:
                ends.setdefault(LLAMA_END, f"LLaMA's, where {file} has the wrong ids of converters of March 2023")
        else:
            ends.setdefault(value, why)
    for found, why in ((text.eos_id, text.eos_why), (text.own.eos, "the sentencepiece model's own")):
        if found is not None and found < vocab_size:
            ends.setdefault(found, why)
    if not ends and "eos_token_id" not in config and vocab_size > LLAMA_END:
        ends[LLAMA_END] = "transformers' default for LLaMA: no file names one"
    return SpecialIds(text, tuple(EndId(found, why) for found, why in ends.items()), tuple(passed))


def of_folder(folder: Path, tokenizer: Tokenizer | None, vocab_size: int) -> SpecialIds:
    """Those of the model in `folder`. CheckpointError names a file that is broken."""
    path = folder / GENERATION
    generation = strict_json.read_settings(path) if is_file(path) else {}
    text = tokenizer.ids if tokenizer is not None else _without_model(TokenizerFiles.read(folder), vocab_size)
    return special_ids(strict_json.read_settings(folder / CONFIG), generation, text, vocab_size)


def of_contents(
    contents: Mapping[str, bytes], folder: Path, tokenizer: Tokenizer | None, vocab_size: int
) -> SpecialIds:
    """Those of a model whose files are {name: content}, which errors name as of `folder`."""
    config, generation = (
        strict_json.parse_settings(contents.get(name, b"{}"), str(folder / name)) for name in (CONFIG, GENERATION)
    )
    text = tokenizer.ids if tokenizer is not None else _without_model(TokenizerFiles.of(contents, folder), vocab_size)
    return special_ids(config, generation, text, vocab_size)


def _without_model(files: TokenizerFiles, vocab_size: int) -> TextIds:
    """What the names in a tokenizer's files tell where it has no tokenizer.model."""
    added = files.added(0, vocab_size)
    return text_ids(files, Own(), lambda name: added[name][0] if name in added else None)


def _told(config: Mapping[str, Any], generation: Mapping[str, Any]) -> Iterator[tuple[Any, str, bool]]:
    """(end id, file, whether the file has the ids of early converters), as the files say them; null says nothing."""
    early = [all(_same(told.get(key), value) for key, value in _EARLY.items()) for told in (config, generation)]
    for told, file in ((generation, "generation_config.json"), (config, "config.json")):
        value = told.get("eos_token_id")
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                yield one, file, any(early) and _same(one, 1)


def _same(value: Any, wanted: int) -> bool:
    return type(value) is int and value == wanted
