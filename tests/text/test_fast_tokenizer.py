"""FastTokenizer: transformers' ids and texts for awkward strings, no special id from text, and files that are refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from assets import shared
from fast_files import AWKWARD, BOS, EOS, EOT, byte_level, llama_3, spaced, special, write

from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
from baize_engine.errors import CheckpointError, RequestError
from baize_engine.text.choose import tokenizer_of
from baize_engine.text.fast_tokenizer import FastTokenizer
from baize_engine.text.incremental import IncrementalDecoder
from baize_engine.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

KINDS = {
    "llama_3": lambda: byte_level(),
    "llama_3_nfc": lambda: byte_level(normalizer="NFC"),
    "no_begin_token": lambda: byte_level(post=None),
    **{kind: (lambda kind=kind: spaced(kind)) for kind in ("first", "always", "prepend", "metaspace", "never")},
}


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path, KINDS[request.param]())


def both(folder: Path) -> tuple[Tokenizer, Any]:
    ours = tokenizer_of(folder)
    assert isinstance(ours, FastTokenizer)
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


def test_ids_are_transformers_own(folder: Path) -> None:
    ours, theirs = both(folder)
    assert theirs.is_fast
    for text in AWKWARD:
        assert ours.encode(text, allow_special=True) == theirs.encode(text), text
        assert ours.encode(text) == theirs.encode(text, split_special_tokens=True), text
        bare = ours.encode(text, add_bos=False)
        assert bare == theirs.encode(text, split_special_tokens=True, add_special_tokens=False)
        assert not {ours.id_of(token) for token in ours.special_tokens} & {*bare} - {ours.id_of("<unk>")}


def test_a_real_vocabulary(tmp_path: Path) -> None:
    """LLaMA's, as transformers 5 writes it."""
    (tmp_path / "tokenizer.model").write_bytes(shared("assets/tokenizer_32000.model").read_bytes())
    transformers.LlamaTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    ours, theirs = both(tmp_path / "saved")
    for text in [*AWKWARD, Path(__file__).read_text()]:
        ids = theirs.encode(text)
        assert ours.encode(text, allow_special=True) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_texts_are_transformers_own_whole_and_piece_by_piece(folder: Path) -> None:
    ours, theirs = both(folder)
    for text in AWKWARD:
        ids = ours.encode(text, allow_special=True)
        wanted = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids) == wanted, text
        for at in range(0, len(ids), 7):
            decoder = IncrementalDecoder(ours, ids[:at])
            rest = "".join(map(decoder.push, ids[at:])) + decoder.flush()
            assert wanted.endswith(rest)


def test_any_ids_have_transformers_text(folder: Path) -> None:
    """But for broken runs of byte pieces, of which it keeps no character: see `incremental`."""
    ours, theirs = both(folder)
    draw = random.Random(5)
    compared = 0
    for _ in range(400):
        ids = [draw.randrange(ours.vocab_size) for _ in range(draw.randrange(12))]
        wanted = theirs.decode(ids, skip_special_tokens=True)
        if "\ufffd" not in wanted or ours.rules.errors == "replace":
            assert ours.decode(ids) == wanted
            compared += 1
    assert compared > 50


def test_a_text_that_continues_gets_no_dummy_space(folder: Path) -> None:
    ours, _ = both(folder)
    byte_pairs = ours.rules.errors == "replace"
    for text in AWKWARD:
        ids = ours.encode(text, add_bos=False, continues=True)
        if byte_pairs:
            assert ids == ours.encode(text, add_bos=False)
        elif "<x>" not in text:
            assert ours.decode([*ours.encode("x"), *ids]) == "x" + text.replace("\u2581", " ")


def test_what_begins_and_ends_texts(tmp_path: Path) -> None:
    ours = tokenizer_of(llama_3(tmp_path))
    assert ours is not None
    bos, eot = ours.id_of(BOS), ours.id_of(EOT)
    assert (ours.bos_id, ours.eos_id, ours.ids.adds_bos, ours.ids.adds_eos) == (bos, eot, True, False)
    assert ours.encode("a") == [bos, *ours.encode("a", add_bos=False)]
    assert ours.encode("a", add_bos=False, add_eos=True)[-1] == eot
    assert ours.ids.bos_why == "the post-processor of tokenizer.json adds it"
    assert ours.ids.eos_why == "eos_token '<|eot_id|>' in tokenizer_config.json"
    bare = tokenizer_of(write(tmp_path / "bare", byte_level(post=None), bos_token=BOS, add_bos_token=True))
    assert bare is not None
    assert (bare.bos_id, bare.eos_id) == (bos, None)
    assert bare.encode("a") == bare.encode("a", add_bos=False)
    assert bare.ids.passed_over == ("add_bos_token in tokenizer_config.json: tokenizer.json decides, and says false",)
    with pytest.raises(RequestError, match="no EOS token, wanted add_eos=False"):
        bare.encode("a", add_eos=True)


def test_both_ends_may_be_added_and_no_more(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer.from_str(spaced())
    ends = [("<s>", 1), ("</s>", 2)]
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    ours, theirs = both(write(tmp_path / "two", made.to_str()))
    assert ours.encode("a", add_eos=None) == theirs.encode("a")
    assert ours.encode("a") == theirs.encode("a")[:-1]
    for single in ("<s> <s> $A", "$A $A", "<s> $A </s> </s>"):
        made.post_processor = tokenizers.processors.TemplateProcessing(single=single, special_tokens=ends)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: the post-processor is .*, wanted at most a token"):
            FastTokenizer(made.to_str().encode())


def test_special_tokens_of_a_vocabulary_are_not_found_in_text(tmp_path: Path) -> None:
    """A unigram model gives a special token for its spelling whatever the library is told, also as a normaliser's result."""
    pieces = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -1.0), ("!", -3.0), *((c, -9.0) for c in "</s>ab ")]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    made.decoder = tokenizers.decoders.Metaspace(prepend_scheme="never")
    made.normalizer = tokenizers.normalizers.NFKC()
    made.add_special_tokens([special(text) for text in ("<unk>", "<s>", "</s>", "!")])
    ours = FastTokenizer(made.to_str().encode())
    for text in ("a</s>b", "\uff1c/s\uff1e", "</s>", "<s></s><s>"):
        ids = ours.encode(text)
        assert not {1, 2} & {*ids}, text
        assert "".join(made.id_to_token(token_id) for token_id in ids) == text.replace("\uff1c", "<").replace(
            "\uff1e", ">"
        )
    assert ours.encode("a</s>", allow_special=True)[-1] == 2
    assert ours.encode("!") == [3]  # a character, which any text has
    assert ours.encode("\u4e00") == [0]


def test_a_vocabulary_of_special_tokens_leaves_some_texts_without_ids() -> None:
    """What a stranger's file can do is refuse a text."""
    runs = ["a" * count for count in range(2, 1500)]
    pieces = [("<unk>", 0.0), ("a", -9.0), *((run, -1.0) for run in runs), ("VIII", -1.0)]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    made.decoder = tokenizers.decoders.Metaspace(prepend_scheme="never")
    made.normalizer = tokenizers.normalizers.NFKC()
    made.add_special_tokens([special(text) for text, _ in pieces[2:]])
    ours = FastTokenizer(made.to_str().encode())
    assert ours.encode("a" * 1499) == [1] * 1499
    with pytest.raises(
        RequestError, match="is a special token to this tokenizer: wanted a text without it, or parse_special"
    ):
        ours.encode("x\u2167")  # one character that is normalised into four


def test_tokens_that_only_other_files_name(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer.from_str(byte_level())
    end = made.get_vocab_size()
    listed = {str(end + i): {"content": text, "special": i == 0} for i, text in enumerate(("<|im_end|>", "<z>"))}
    listed["900"] = {"content": "<far>", "special": True}  # transformers gives it another id
    roles = {"eos_token": "<|im_end|>", "pad_token": "<x>", "sep_token": "the"}
    ours = tokenizer_of(write(tmp_path, byte_level(), added_tokens_decoder=listed, **roles))
    assert ours is not None
    assert (ours.vocab_size, ours.eos_id, ours.id_of("<z>"), ours.id_of("<far>")) == (end + 2, end, end + 1, None)
    assert ours.encode("a<z>", add_bos=False)[-1] == end + 1
    assert end not in ours.encode("<|im_end|>")
    assert ours.encode("<|im_end|>", add_bos=False, allow_special=True) == [end]
    assert ours.id_of("<x>") not in ours.encode("<x>")  # a role makes it special
    assert ours.decode([ours.id_of("<x>"), ours.id_of("the")]) == "the"  # but not a word


def test_tokens_beyond_the_models_rows_are_text() -> None:
    whole = FastTokenizer(byte_level().encode())
    x = whole.id_of("<x>")
    few = FastTokenizer(byte_level().encode(), rows=x)
    assert (few.vocab_size, few.id_of("<x>")) == (x, None)
    assert max(few.encode("<x>")) < x
    more = FastTokenizer(byte_level().encode(), rows=whole.vocab_size + 3)
    assert more.piece(whole.vocab_size + 2) == b""
    with pytest.raises(RequestError, match=f"token id {whole.vocab_size + 3} stands for no text"):
        more.piece(whole.vocab_size + 3)
    with pytest.raises(RequestError, match="token id -1 stands for no text"):
        more.decode([-1])


def test_settings_of_training_do_not_count() -> None:
    """Dropout would draw other ids each time; truncation and padding are for batches."""
    whole = json.loads(byte_level())
    whole["model"] |= {"dropout": 0.5, "ignore_merges": False}
    whole["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    whole["padding"] = {"strategy": {"Fixed": 50}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "x"}  # fmt: skip
    ours = FastTokenizer(json.dumps(whole).encode())
    wanted = FastTokenizer(byte_level().encode()).encode("the cat sat on the mat")
    assert {tuple(ours.encode("the cat sat on the mat")) for _ in range(20)} == {tuple(wanted)}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"model": {"type": "Nope"}}, "the tokenizers library refuses it"),
        (
            {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
            "the tokenizers library refuses it",
        ),  # a panic in Rust
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "the tokenizers library refuses it"),
        ({"decoder": None}, "the decoder is None, wanted ByteLevel"),
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "the decoder is {.*WordPiece"),
        (
            {"post_processor": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}},
            "post-processor",
        ),
    ],
)
def test_files_that_cannot_be_used_are_named(change: dict, wanted: str, capfd: pytest.CaptureFixture[str]) -> None:
    content = json.dumps({**json.loads(byte_level()), **change}).encode()
    with pytest.raises(CheckpointError, match=rf"m/tokenizer\.json: .*{wanted}"):
        FastTokenizer(content, TokenizerFiles(Path("m")))


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 100_000, byte_level().encode()[:-9]])
def test_broken_files_are_named(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"m/tokenizer\.json: the tokenizers library refuses it"):
        FastTokenizer(content, TokenizerFiles(Path("m")))


def test_a_text_that_the_library_fails_at_is_refused() -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="<none>"))
    made.decoder = tokenizers.decoders.ByteLevel()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the tokenizers library refuses it"):
        FastTokenizer(made.to_str().encode())  # at the trial of an unknown character
    whole = json.loads(byte_level())
    whole["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Removed", "invert": False}
    slow = FastTokenizer(json.dumps(whole).encode(), TokenizerFiles(Path("m")))
    with pytest.raises(RequestError, match=r"m/tokenizer\.json: .*retry-limit-in-match"):
        slow.encode("x" * 60)


def test_the_end_of_sequence_of_a_pretrained_model_may_be_its_begin_token(tmp_path: Path) -> None:
    ours = tokenizer_of(write(tmp_path, byte_level(), bos_token=BOS, eos_token=BOS))
    assert ours is not None
    assert (ours.bos_id, ours.eos_id) == (ours.id_of(BOS), ours.id_of(BOS))
    assert ours.id_of(EOS) == ours.id_of(BOS) + 1
