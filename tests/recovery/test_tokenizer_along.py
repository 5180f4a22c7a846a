"""A model that cannot speak is told before the work; a base's tokenizer.model comes along where the vocabularies agree."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import sentencepiece
import tiny
from fakes import small_model

from baize_engine import Engine, make_diff, recover, verify
from baize_engine.cli import main
from baize_engine.errors import BaizeWarning, RequestError

SETTINGS = {"device": "cpu", "progress": False}
ROWS = sentencepiece.SentencePieceProcessor(model_proto=small_model()).get_piece_size()


def fast_file(count: int) -> bytes:
    """A tokenizer.json of `count` tokens, as far as their number is read."""
    added = [{"id": count - 1, "content": "<x>"}]
    return json.dumps({"added_tokens": added, "model": {"vocab": {f"t{i}": i for i in range(count - 1)}}}).encode()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base with tokenizer.model, and a diff with one more row and no tokenizer."""
    base, diff = tiny.write_pair(tmp_path, cfg=tiny.config(vocab_size=ROWS))
    (base / "tokenizer.model").write_bytes(small_model())
    return base, diff


@pytest.fixture(scope="module")
def saved_by_transformers_5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it writes for the small model with "<pad>": tokenizer.json and tokenizer_config.json, and no tokenizer.model."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("saved")
    (source / "tokenizer.model").write_bytes(small_model())
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (source / "config.json").write_text(json.dumps(tiny.CONFIG))
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(out)
    assert not (out / "tokenizer.model").exists()
    return out


def add_saved(folder: Path, saved: Path) -> None:
    for path in saved.iterdir():
        shutil.copy(path, folder)


def told(pair: tuple[Path, Path], out: Path) -> list[str]:
    """What a recovery warns of; each line must be said by the warning and, of a folder that is there, by verify."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recover(*pair, out, **SETTINGS)
    said = [str(each.message) for each in caught if issubclass(each.category, BaizeWarning)]
    assert list(verify(out).warnings) == said
    return said


def test_a_bases_tokenizer_model_comes_along(
    pair: tuple[Path, Path], saved_by_transformers_5: Path, tmp_path: Path
) -> None:
    add_saved(pair[1], saved_by_transformers_5)
    assert told(pair, tmp_path / "out") == []
    assert (tmp_path / "out/tokenizer.model").read_bytes() == small_model()
    assert verify(tmp_path / "out").ok
    with (
        Engine.from_pretrained(tmp_path / "out", device="cpu") as engine,
        Engine.from_diff(*pair, device="cpu") as other,
    ):
        assert engine.tokenizer is not None
        assert engine.tokenizer.vocab_size == ROWS + 1
        assert engine.tokenizer.decode([ROWS]) == ""  # <pad> is special, and only tokenizer.json says so
        text = engine.generate("the cat sat")[0].text
        assert other.generate("the cat sat")[0].text == text
        assert engine.encode("<pad>") != [1, ROWS]


def test_what_transformers_5_saved_becomes_a_diff_and_a_model_that_speaks(
    pair: tuple[Path, Path], saved_by_transformers_5: Path, tmp_path: Path
) -> None:
    base = pair[0]
    recover(*pair, tmp_path / "tuned", **SETTINGS)
    (tmp_path / "tuned/tokenizer.model").unlink()
    add_saved(tmp_path / "tuned", saved_by_transformers_5)
    make_diff(base, tmp_path / "tuned", tmp_path / "made", **SETTINGS)
    assert told((base, tmp_path / "made"), tmp_path / "out") == []
    with Engine.from_pretrained(tmp_path / "out", device="cpu") as engine:
        assert engine.chat([{"role": "user", "content": "who are you"}]).token_ids


def test_another_vocabulary_does_not_come_along(
    pair: tuple[Path, Path], saved_by_transformers_5: Path, tmp_path: Path
) -> None:
    base, diff = pair
    add_saved(diff, saved_by_transformers_5)
    (base / "tokenizer.model").write_bytes(small_model(vocab_size=350))
    assert told(pair, tmp_path / "out") == []
    assert not (tmp_path / "out/tokenizer.model").exists()
    with (
        Engine.from_pretrained(tmp_path / "out", device="cpu") as engine,
        Engine.from_diff(*pair, device="cpu") as other,
    ):  # by tokenizer.json
        assert engine.encode("the cat") == other.encode("the cat")
        text = engine.generate("the cat sat")[0].text
        assert other.generate("the cat sat")[0].text == text


def test_a_machine_without_the_tokenizers_library_is_told(
    pair: tuple[Path, Path], saved_by_transformers_5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baize_engine.checkpoint.vocabulary_files.find_spec", lambda name: None)
    base, diff = pair
    add_saved(diff, saved_by_transformers_5)
    (base / "tokenizer.model").unlink()
    (line,) = told(pair, tmp_path / "out")
    needed = "text needs the tokenizers library here: pip install 'baize-engine[tokenizers]'"
    assert line.endswith(f"out has tokenizer.json without tokenizer.model: {needed}")
    with Engine.from_pretrained(tmp_path / "out", device="cpu") as engine:
        assert engine.generate([[1, 5]])[0].token_ids
        with pytest.raises(RequestError, match="pip install"):
            engine.generate("the cat")
    with (
        Engine.from_diff(*pair, device="cpu") as engine,
        pytest.raises(RequestError, match="pip install"),
    ):
        engine.generate("the cat")


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, "has no tokenizer, so the model takes token ids only: put its tokenizer.model beside it"),
        (
            {"tokenizer.model": b""},
            "tokenizer.model: not a sentencepiece model (it is empty): the model takes token ids only",
        ),
        ({"tokenizer.model": b"\xff" * 9}, "not a sentencepiece model (9 bytes that hold no pieces)"),
        ({"tokenizer.model": None, "added_tokens.json": b'{"<pad>": '}, "added_tokens.json: not JSON"),
        ({"tokenizer.model": None, "added_tokens.json": b'{"<pad>": "x"}'}, "'<pad>': 'x', wanted a token and its id"),
        ({"tokenizer.model": None}, f"has {ROWS + 1} rows and its tokenizer {ROWS} tokens: 1 row(s) stand for no text"),
        (
            {"tokenizer.model": None, "added_tokens.json": json.dumps({"<pad>": ROWS, "<x>": ROWS + 1}).encode()},
            f"1 added token(s), such as '<x>', have ids beyond the model's {ROWS + 1} rows",
        ),
        (
            {"tokenizer.model": small_model(vocab_size=ROWS + 20)},
            f"has {ROWS + 20} pieces, and the model {ROWS + 1} rows: it is another model's tokenizer",
        ),
        (
            {"tokenizer.json": fast_file(ROWS + 2)},
            f"tokenizer.json has {ROWS + 2} tokens, and the model {ROWS + 1} rows: it is another model's tokenizer",
        ),
        (
            {"tokenizer.json": fast_file(ROWS - 1)},
            f"tokenizer.json has {ROWS - 1} tokens, and the model {ROWS + 1} rows: 2 row(s) stand for no text",
        ),
    ],
)
def test_what_keeps_a_model_from_speaking_is_told_before_the_work(
    pair: tuple[Path, Path], tmp_path: Path, files: dict, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base, diff = pair
    (base / "tokenizer.model").unlink()
    for name, content in files.items():
        (diff / name).write_bytes(small_model() if content is None else content)
    (line,) = told(pair, tmp_path / "out")
    assert wanted in line
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert f"warning: {line}" in capsys.readouterr().err


def test_a_tokenizer_without_fault_is_not_spoken_of(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (pair[0] / "added_tokens.json").write_text(json.dumps({"<pad>": ROWS}))
    assert told(pair, tmp_path / "out") == []


def test_a_result_that_this_engine_will_not_run_is_told_before_the_work(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    for folder in pair:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "gelu"}))
    with pytest.warns(BaizeWarning, match=r"this engine will not run it; config: hidden_act is 'gelu'"):
        recover(*pair, tmp_path / "out", **SETTINGS)


@pytest.mark.parametrize("content", [b"\x0a\x00", small_model() + b"\x0a\x00", small_model() + b"\x0a\x02\x10\x00"])
def test_a_piece_without_text_is_refused(pair: tuple[Path, Path], tmp_path: Path, content: bytes) -> None:
    (pair[1] / "tokenizer.model").write_bytes(content)
    (line,) = told(pair, tmp_path / "out")
    assert "tokenizer.model: not a sentencepiece model" in line


def test_a_broken_model_of_the_base_is_passed_over(
    pair: tuple[Path, Path], saved_by_transformers_5: Path, tmp_path: Path
) -> None:
    add_saved(pair[1], saved_by_transformers_5)
    (pair[0] / "tokenizer.model").write_bytes(b"\xff" * 100)
    assert told(pair, tmp_path / "out") == []
    assert not (tmp_path / "out/tokenizer.model").exists()
