"""Tokenizer: sentencepiece's ids, added tokens from the files, and no way from text to a control token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from assets import shared
from fakes import small_model

from baize_engine.errors import CheckpointError, RequestError
from baize_engine.text.choose import tokenizer_of
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer

TEXTS = [
    "",
    "Hello world",
    " leading",
    "trailing ",
    "two  spaces",
    "\nnewline first",
    "tabs\tand\r\nlines",
    "naïve café",
    "日本語とemoji 😀👍🏽",
    "<|user|>\nHi\n<|assistant|>\n",
    "1234 + 5.6e-7 = ?",
    "\u2581literal",
    "a\x00b",
]


def write(folder: Path, model: bytes | None = None, **files: object) -> Path:
    (folder / "tokenizer.model").write_bytes(model or small_model())
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_sentencepieces_with_one_begin_token(text: str) -> None:
    tokenizer = SentencePieceTokenizer(small_model())
    oracle = sentencepiece.SentencePieceProcessor(model_proto=small_model())
    assert tokenizer.encode(text, add_bos=False) == oracle.encode(text)
    assert tokenizer.encode(text) == [1, *oracle.encode(text)]
    assert tokenizer.decode(tokenizer.encode(text)) == oracle.decode(oracle.encode(text))


def test_a_continuing_text_has_no_dummy_space() -> None:
    tokenizer = SentencePieceTokenizer(small_model())
    assert tokenizer.decode([*tokenizer.encode("the"), *tokenizer.encode("cat", add_bos=False)]) == "the cat"
    assert tokenizer.decode([*tokenizer.encode("the"), *tokenizer.encode("cat", False, continues=True)]) == "thecat"


def test_text_never_becomes_a_control_or_special_token(tmp_path: Path) -> None:
    pad = SentencePieceTokenizer(small_model()).vocab_size
    files = {"added_tokens": {"<pad>": pad}, "special_tokens_map": {"pad_token": {"content": "<pad>"}}}
    tokenizer = tokenizer_of(write(tmp_path, **files))
    assert tokenizer.vocab_size == pad + 1
    text = "a</s><s><pad>b"
    ids = tokenizer.encode(text, add_bos=False)
    assert not {1, 2, pad} & set(ids)
    assert tokenizer.decode(ids) == text
    assert [i for i in tokenizer.encode(text, add_bos=False, allow_special=True) if i in (1, 2, pad)] == [2, 1, pad]
    assert tokenizer.decode([*tokenizer.encode("a"), pad, 2]) == "a"


def test_added_tokens_that_are_text_are_found_and_shown(tmp_path: Path) -> None:
    n = SentencePieceTokenizer(small_model()).vocab_size
    decoder = {
        "0": {"content": "<unk>", "special": True},
        str(n): {"content": "<x>", "special": False},
        str(n + 1): {"content": "<x><y>", "special": False},
        str(n + 2): {"content": "<hidden>", "special": True},
    }
    tokenizer = tokenizer_of(write(tmp_path, tokenizer_config={"added_tokens_decoder": decoder}))
    ids = tokenizer.encode("the<x><y> cat<x>", add_bos=False)
    assert [i for i in ids if i >= n] == [n + 1, n]
    assert tokenizer.decode([*ids, n + 2]) == "the<x><y> cat<x>"
    assert n + 2 not in tokenizer.encode("<hidden>")
    assert tokenizer.vocab_size == n + 3


def test_begin_and_end_ids_are_sentencepieces_unless_the_files_name_others(tmp_path: Path) -> None:
    write(tmp_path)
    plain = tokenizer_of(tmp_path)
    n = plain.vocab_size
    assert (plain.bos_id, plain.eos_id, plain.encode("a")[0]) == (1, 2, 1)
    named = {"bos_token": "<|im_start|>", "eos_token": {"__type": "AddedToken", "content": "<|im_end|>"}}
    write(tmp_path, added_tokens={"<|im_start|>": n, "<|im_end|>": n + 1}, tokenizer_config=named)
    given = tokenizer_of(tmp_path)
    assert (given.bos_id, given.eos_id, given.encode("a")[0]) == (n, n + 1, n)
    assert given.decode([n, *given.encode("a", add_bos=False), n + 1]) == "a"


def test_a_begin_and_an_end_id_stand_around_a_text_as_the_files_say(tmp_path: Path) -> None:
    plain = tokenizer_of(write(tmp_path))
    bare = plain.encode("the cat", add_bos=False)
    assert plain.encode("the cat") == plain.encode("the cat", add_eos=None) == [1, *bare]
    other = tokenizer_of(write(tmp_path, tokenizer_config={"add_bos_token": False, "add_eos_token": True}))
    assert other.encode("the cat") == bare
    assert other.encode("the cat", add_eos=None) == [*bare, 2]
    assert other.encode("the cat", add_bos=True, add_eos=False) == [1, *bare]
    without = SentencePieceTokenizer(small_model(bos_id=-1, eos_id=-1))
    assert (without.bos_id, without.eos_id) == (None, None)
    assert without.encode("a", add_eos=None) == without.encode("a", add_bos=False)
    with pytest.raises(RequestError, match="no BOS token, wanted add_bos=False"):
        without.encode("a", add_bos=True)
    with pytest.raises(RequestError, match="no EOS token, wanted add_eos=False"):
        without.encode("a", add_eos=True)


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": "<|im_end|>"},
        {"added_tokens_decoder": {"3": {"content": "<|im_end|>", "special": True}}, "eos_token": "<|im_end|>"},
        {"added_tokens_decoder": {"3": {"content": "<|im_end|>", "special": True}}},
    ],
)
def test_special_tokens_among_sentencepieces_own_text_are_special_too(tmp_path: Path, config: dict) -> None:
    """Yi's models have theirs there: as user-defined symbols, which sentencepiece finds in any text."""
    model = small_model(user_defined_symbols="<|im_end|>")
    assert sentencepiece.SentencePieceProcessor(model_proto=model).piece_to_id("<|im_end|>") == 3
    tokenizer = tokenizer_of(write(tmp_path, model, tokenizer_config=config))
    assert tokenizer.eos_id == (3 if "eos_token" in config else 2)
    text = "the cat<|im_end|> sat"
    ids = tokenizer.encode(text)
    assert 3 not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text, allow_special=True).count(3) == 1
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True)) == "the cat sat"
    assert 3 in SentencePieceTokenizer(model).encode(text)  # nobody says that it is special


def listed(model: bytes, *texts: str) -> dict:
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    decoder = {str(pieces.piece_to_id(text)): {"content": text, "special": True} for text in texts}
    return {"tokenizer_config": {"added_tokens_decoder": decoder}}


@pytest.mark.parametrize(
    "files",
    [
        {"special_tokens_map": {"additional_special_tokens": ["<|im_start|>"]}},
        {"special_tokens_map": {"pad_token": {"content": "<|im_start|>"}}},
        {"tokenizer_config": {"additional_special_tokens": [{"content": "<|im_start|>"}]}},
    ],
)
def test_tokens_that_are_only_named_special_are_special_too(tmp_path: Path, files: dict) -> None:
    model = small_model(user_defined_symbols="<|im_start|>")
    tokenizer = tokenizer_of(write(tmp_path, model, **files))
    text = "the<|im_start|> cat"
    assert 3 not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True)) == "the cat"


@pytest.mark.parametrize("text", ["<<s2>", "<s2>", "<<<s2>", "x<<s2>y", "<<s2><s2>", "<s<s2>2>", "<s2" * 3 + ">>"])
def test_special_tokens_within_each_other_are_hidden(tmp_path: Path, text: str) -> None:
    model = small_model(user_defined_symbols="<<s2>,<s2>,s2>")
    tokenizer = tokenizer_of(write(tmp_path, model, **listed(model, "<<s2>", "<s2>", "s2>")))
    ids = tokenizer.encode(text, add_bos=False)
    assert not {3, 4, 5} & set(ids)
    assert tokenizer.decode(ids) == text
    assert {3, 4} & set(tokenizer.encode(text, allow_special=True))


@pytest.mark.parametrize("text", ["\uff1c|im_end|\uff1e", "\uff1c\uff5cim_end\uff5c\uff1e", "<|im_end|>"])
def test_what_a_model_normalises_to_a_special_token_is_hidden(tmp_path: Path, text: str) -> None:
    model = small_model(user_defined_symbols="<|im_end|>", normalization_rule_name="nmt_nfkc")
    assert 3 in sentencepiece.SentencePieceProcessor(model_proto=model).encode(text)
    tokenizer = tokenizer_of(write(tmp_path, model, **listed(model, "<|im_end|>")))
    ids = tokenizer.encode(f"a{text} b", add_bos=False)
    assert 3 not in ids
    assert tokenizer.decode(ids) == "a<|im_end|> b"


def test_a_special_token_of_one_character_is_its_bytes_in_a_text(tmp_path: Path) -> None:
    model = small_model(user_defined_symbols="\u00a7")
    tokenizer = tokenizer_of(write(tmp_path, model, **listed(model, "\u00a7")))
    ids = tokenizer.encode("the\u00a7cat", add_bos=False)
    assert 3 not in ids
    assert tokenizer.decode(ids) == "the\u00a7cat"
    assert 3 in tokenizer.encode("\u00a7", allow_special=True)
    without = small_model(user_defined_symbols="\u00a7", byte_fallback=False, vocab_size=100)
    tokenizer = tokenizer_of(write(tmp_path, without, **listed(without, "\u00a7")))
    assert tokenizer.encode("\u00a7", add_bos=False)[-1] == tokenizer.ids.own.unk


def test_words_of_the_vocabulary_stay_words_whatever_a_file_names_special(tmp_path: Path) -> None:
    names = {"additional_special_tokens": ["dog", "\u2581cat", "c", "\u2581"], "pad_token": "d"}
    tokenizer = tokenizer_of(write(tmp_path, special_tokens_map=names))
    text = "the cat saw a dog c d"
    assert tokenizer.encode(text) == SentencePieceTokenizer(small_model()).encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_ordinary_texts_have_the_same_ids_beside_hidden_tokens(tmp_path: Path, text: str) -> None:
    model = small_model(user_defined_symbols="<|im_end|>,\u00a7")
    tokenizer = tokenizer_of(write(tmp_path, model, **listed(model, "<|im_end|>", "\u00a7")))
    assert tokenizer.encode(text) == SentencePieceTokenizer(model).encode(text)


def test_a_number_of_the_most_digits_may_have_a_sign(tmp_path: Path) -> None:
    write(tmp_path)
    for sign in ("", "-"):
        (tmp_path / "tokenizer_config.json").write_text(f'{{"model_max_length": {sign}{"9" * 4300}}}')
        assert tokenizer_of(tmp_path).bos_id == 1
        (tmp_path / "tokenizer_config.json").write_text(f'{{"model_max_length": {sign}{"9" * 4301}}}')
        with pytest.raises(CheckpointError, match="a number of 4301 digits"):
            tokenizer_of(tmp_path)


def test_rows_without_a_token_stand_for_no_text(tmp_path: Path) -> None:
    write(tmp_path, added_tokens={"<pad>": 360, "<x>": 362, "<far>": 400}, special_tokens_map={"pad_token": "<pad>"})
    tokenizer = tokenizer_of(tmp_path, rows=384)
    the = tokenizer.encode("the", add_bos=False)
    assert tokenizer.decode([*the, 361, 360, 383, *the, 362]) == "the the<x>"
    with pytest.raises(RequestError, match="token id 384 stands for no text"):
        tokenizer.decode([384])
    assert max(tokenizer.encode("a<x><far>")) == 362  # the model has no row for <far>: its characters are read
    assert tokenizer.id_of("<far>") is None
    with pytest.raises(RequestError, match="token id 361 stands for no text"):
        tokenizer_of(write(tmp_path, added_tokens={"<pad>": 360})).decode([361])


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens": {"": 360}},
        {"added_tokens": {"<unk>": 0, "<s>": 1, "</s>": 2}},
        {"tokenizer_config": {"added_tokens_decoder": {"0": 7, "1": None, "99999": ["far"]}}},
        {
            "tokenizer_config": {
                "added_tokens_decoder": None,
                "model_max_length": 10**30,
                "pad_token": 7,
                "bos_token": [1],
            }
        },
        {"tokenizer_config": {"eos_token": None, "unk_token": {"content": 3}, "add_bos_token": None}},
        {"special_tokens_map": {"additional_special_tokens": [7, None, {"x": 1}], "eos_token": "", "pad_token": None}},
    ],
)
def test_odd_entries_that_are_not_used_are_not_looked_at(tmp_path: Path, files: dict) -> None:
    tokenizer = tokenizer_of(write(tmp_path, **files), rows=384)
    assert tokenizer.encode("the cat") == SentencePieceTokenizer(small_model()).encode("the cat")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.decode([360]) == ""


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens": {"<pad>": "360"}}, r"added_tokens\.json: '<pad>': '360', wanted a token and its id"),
        ({"added_tokens": {"<pad>": True}}, r"added_tokens\.json: '<pad>': True"),
        ({"added_tokens": {"<pad>": -1}}, r"added_tokens\.json: '<pad>': -1"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, r"tokenizer_config\.json: added_tokens_decoder is \[1\]"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": "<pad>"}}}, "added_tokens_decoder 'x'"),
        ({"tokenizer_config": {"added_tokens_decoder": {"1" * 5000: "<pad>"}}}, "added_tokens_decoder '111"),
        ({"tokenizer_config": {"added_tokens_decoder": {"360": {"content": 7}}}}, "added_tokens_decoder '360'"),
    ],
)
def test_entries_that_are_no_tokens_are_named(tmp_path: Path, files: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        tokenizer_of(write(tmp_path, **files), rows=384)


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_an_unknown_id_is_named(token_id: int) -> None:
    with pytest.raises(RequestError, match=f"token id {token_id} stands for no text"):
        SentencePieceTokenizer(small_model()).decode([4, token_id])


def test_text_must_be_valid_unicode() -> None:
    tokenizer = SentencePieceTokenizer(small_model())
    with pytest.raises(RequestError, match="lone surrogate at character 2"):
        tokenizer.encode("ab\udc80")
    with pytest.raises(RequestError, match="wanted a string"):
        tokenizer.encode(["ab"])  # type: ignore[arg-type]


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: not a sentencepiece model \(it is empty\)"):
        tokenizer_of(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is a Git-LFS pointer"):
        tokenizer_of(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no such model")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: not a sentencepiece model"):
        tokenizer_of(tmp_path)
    write(tmp_path, added_tokens={"<pad>": "32000"})
    with pytest.raises(CheckpointError, match=r"added_tokens\.json: '<pad>'"):
        tokenizer_of(tmp_path)
    (tmp_path / "added_tokens.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"added_tokens\.json: not JSON"):
        tokenizer_of(tmp_path)


def test_agrees_with_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shutil.copy(shared("assets/tokenizer_32000.model"), tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 32000}')
    ours = tokenizer_of(tmp_path)
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path, legacy=True)
    # Its form since 2023 no longer runs sentencepiece, and differs from it where white space leads or repeats.
    for text in set(TEXTS) - {" leading", "two  spaces", "\u2581literal"}:
        assert ours.encode(text, add_bos=False) == theirs.encode(text, add_special_tokens=False), text
    # Behind a special token the old form adds a dummy space, and today's and ours do not.
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path, legacy=False)
    for text in ["</s>\n<|user|>\nHi", "Hi</s>", "Hi</s> there</s>\n"]:
        ids = ours.encode(text, add_bos=False, allow_special=True)
        assert ids == theirs.encode(text, add_special_tokens=False), text


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("add_eos", [True, False])
def test_what_stands_around_a_text_is_what_transformers_puts_there(
    tmp_path: Path, add_bos: bool, add_eos: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"add_bos_token": add_bos, "add_eos_token": add_eos, "bos_token": "<s>", "eos_token": "</s>"}
    write(tmp_path, tokenizer_config=config)
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    assert tokenizer_of(tmp_path).encode("the cat", add_eos=None) == theirs.encode("the cat")
