"""The ids that begin and end a model's texts, each with the reason for it, from the model's settings files.

Pure functions of the parsed files; `of_folder` reads them. The rules, and why:

- **EOS ids** are the union of those in generation_config.json and config.json, the tokenizer's EOS token by name
  ("<|im_end|>") and the sentencepiece model's own. transformers takes the first file that has any; a model ends with what it
  was trained with, and that is one of these. -1, null and ids without a row in the model are ignored.
- **An EOS id that is the BOS token is ignored.** Converters of March 2023 wrote bos 0, eos 1, pad -1 into config.json and
  generation_config.json; in LLaMA's vocabulary 1 is <s>. Without a sentencepiece model these three numbers together give
  them away, and LLaMA's own 2 replaces the 1. (0, <unk>, stays if a file names it: some finetunes learnt to end with it.)
- **The BOS id** is the token that tokenizer_config.json names as bos_token, else the sentencepiece model's own. The latter
  is used too if that name is the model's end or unknown token: stanford_alpaca's train.py of March 2023 wrote "</s>" as bos,
  eos and unk, and until commit c0f99b4 of April transformers' LLaMA tokenizer took bos_token_id from the sentencepiece model
  whatever the name said (FastChat #167 restores that for Vicuna), so these families were trained with <s>. Later versions
  put "</s>" there (stanford_alpaca #193). The same holds for the "" of early converters, and for null.
- **Prompts get the BOS id** unless add_bos_token is false, and an EOS id if add_eos_token is true, as in transformers.
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
MAX_PASSED = 16  # ignored ids that are reported: a file may list millions
LLAMA_END = 2  # </s> of LLaMA and Llama-2, and LlamaConfig's default in transformers
_EARLY = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}


@dataclass(frozen=True)
class Own:
    """A sentencepiece model's own ids of its begin, end and unknown token; None for one that it lacks."""

    bos: int | None = None
    eos: int | None = None
    unk: int | None = None


@dataclass(frozen=True)
class TextIds:
    """The BOS and EOS id by a tokenizer's files. `eos_id` ends a reply in a chat, and a prompt if `adds_eos`.

    `bos_why` and `eos_why` say where the ids come from, `passed_over` what was found and ignored.
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
class SpecialIds:
    """All special ids of a model: `text` around prompts; `ends`, ids that end a text, in the order found, each with its reason.

    passed_over: what was found and ignored.
    """

    text: TextIds
    ends: Mapping[int, str]
    passed_over: tuple[str, ...]

    @property
    def end_ids(self) -> tuple[int, ...]:
        return tuple(self.ends)


def text_ids(files: TokenizerFiles, own: Own, id_of: Callable[[str], int | None]) -> TextIds:
    """The BOS and EOS id by the names in a tokenizer's files.

    own: the sentencepiece model's ids, used where a name is absent or unusable.
    id_of: the id of a token by its text, None for one that is not in the model.
    """
    passed: list[str] = []

    def named(key: str, wrong: tuple[int | None, ...], otherwise: int | None) -> tuple[int | None, str]:
        """(id, why) of the token that the files name as `key`, unless its id is one of `wrong`."""
        text, file = files.named(key)
        found = id_of(text) if text else None
        if found is not None and found not in wrong:
            return found, f"{key} {brief(text)} in {file}"
        if text:
            other = f"a token with another use in this model, id {found}"
            what = "not a token of this model" if found is None else other
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
    """The special ids of a model, from its config.json, generation_config.json and tokenizer.

    vocab_size: rows of the model's embedding; ids beyond are ignored.
    """
    ends: dict[int, str] = {}
    passed = list(text.passed_over)

    def pass_over(what: str) -> None:
        if len(passed) < MAX_PASSED:
            passed.append(what)

    for value, file, early in _listed_ends(config, generation):
        why = f"eos_token_id in {file}"
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
            pass_over(f"{why}: {brief(value)} is not a token of this model")
        elif value == text.own.bos or (early and text.own == Own()):
            wrote = " (converters of March 2023 wrote it)" if early else ""
            pass_over(f"{why}: {value} is the BOS token{wrote}")
            if early and text.own == Own() and vocab_size > LLAMA_END:
                ends.setdefault(LLAMA_END, f"LLaMA's, where {file} has the wrong ids of converters of March 2023")
        else:
            ends.setdefault(value, why)
    for found, why in ((text.eos_id, text.eos_why), (text.own.eos, "the sentencepiece model's own")):
        if found is not None and found < vocab_size:
            ends.setdefault(found, why)
    if not ends and "eos_token_id" not in config and vocab_size > LLAMA_END:
        ends[LLAMA_END] = "transformers' default for LLaMA: no file names one"
    return SpecialIds(text, ends, tuple(passed))


def of_folder(folder: Path, tokenizer: Tokenizer | None, vocab_size: int) -> SpecialIds:
    """The special ids of the model in `folder`; `tokenizer` is None if it has none. CheckpointError names a broken file."""
    path = folder / GENERATION
    generation = strict_json.read_settings(path) if is_file(path) else {}
    text = tokenizer.ids if tokenizer is not None else _without_model(TokenizerFiles.read(folder), vocab_size)
    return special_ids(strict_json.read_settings(folder / CONFIG), generation, text, vocab_size)


def of_contents(
    contents: Mapping[str, bytes], folder: Path, tokenizer: Tokenizer | None, vocab_size: int
) -> SpecialIds:
    """The special ids of a model whose files are given as {name: content}; errors name them as files of `folder`."""
    config, generation = (
        strict_json.parse(contents.get(name, b"{}"), str(folder / name), strict=False) for name in (CONFIG, GENERATION)
    )
    text = tokenizer.ids if tokenizer is not None else _without_model(TokenizerFiles.of(contents, folder), vocab_size)
    return special_ids(config, generation, text, vocab_size)


def _without_model(files: TokenizerFiles, vocab_size: int) -> TextIds:
    """The BOS and EOS id of a tokenizer without tokenizer.model, by the names in its files."""
    added = files.added(0, vocab_size)
    return text_ids(files, Own(), lambda name: added[name][0] if name in added else None)


def _listed_ends(config: Mapping[str, Any], generation: Mapping[str, Any]) -> Iterator[tuple[Any, str, bool]]:
    """(EOS id, file, whether it is the wrong 1 of early converters) for each eos_token_id in the files, unchecked."""
    early = any(all(_is(file.get(key), value) for key, value in _EARLY.items()) for file in (config, generation))
    for file, name in ((generation, GENERATION), (config, CONFIG)):
        listed = file.get("eos_token_id")
        for value in listed if isinstance(listed, list) else [listed]:
            if value is not None:
                yield value, name, early and _is(value, 1)


def _is(value: Any, wanted: int) -> bool:
    """Whether `value`, of a JSON file, is the integer `wanted`: True == 1 in Python, and 1.0 too."""
    return type(value) is int and value == wanted
