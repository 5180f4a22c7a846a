"""What `baize recover` tries with a result: weight_diff.py's sum, a question to it, and one to the original model."""

from __future__ import annotations

from pathlib import Path

import fakes
import pytest
import tiny

from baize_engine import recover, verify
from baize_engine.checkpoint.manifest import read_manifest
from baize_engine.cli import main
from baize_engine.recovery import published_sum


def naive_sum(out: Path, buffers: float = 0.0) -> float:
    return read_manifest(out).sum + buffers


@pytest.mark.parametrize(
    ("file", "off", "code"),
    [
        ("checksum_psum.txt", 0.005, 0),
        ("checksum_psum.txt", 0.05, 1),
        ("model_sum.txt", 0.009, 0),
        ("model_sum.txt", -0.05, 1),
    ],
)
def test_the_sum_in_the_diffs_folder_counts(
    file: str, off: float, code: int, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, diff = tiny.write_pair(tmp_path)
    rotary = sum(float(buffer.half().float().sum()) for buffer in tiny.inv_freq(tiny.config()).values())
    for buffers in (0.0, rotary):  # as transformers before 4.31 summed, and since
        (diff / file).write_text(f"{naive_sum(tuned, buffers) + off}\n")
        out = tmp_path / f"out{buffers}"
        assert main(["recover", str(base), str(diff), str(out), "--check_integrity_naively", "True", "--quiet"]) == code
        captured = capsys.readouterr()
        told = captured.err if code else captured.out
        assert f"{diff / file} says" in told
        assert ("missed by" in told) == bool(code)
        assert "is the base the one" in told or not code
        assert verify(out).ok


@pytest.mark.parametrize("content", [b"", b"nan", b"inf", b"five", b"1 2", b"\xff", b"1" * 65, b"0" * 10**6])
def test_a_damaged_sum_is_refused_before_the_work(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, diff = tiny.write_pair(tmp_path)
    (diff / "model_sum.txt").write_bytes(content)
    assert main(["recover", str(base), str(diff), str(tmp_path / "new"), "--check_integrity_naively"]) == 1
    assert "model_sum.txt does not hold one finite number" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def without_warnings(err: str) -> list[str]:
    """The lines on stderr but for those about the tiny models' tokenizers."""
    return [line for line in err.splitlines() if not line.startswith("warning: ")]


def test_published_sums_are_compared_where_they_can_apply(
    pair: tuple[Path, Path],
    tuned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def check(name: str) -> tuple[str, str]:
        command = ["recover", *map(str, pair), str(tmp_path / name), "--check_integrity_naively", "--quiet"]
        assert main(command) == 0
        captured = capsys.readouterr()
        assert captured.out.count("naive sum of ") == 2  # without rotary buffers and with them
        return captured.out, captured.err

    out, err = check("other_shape")
    assert "not compared" in out
    assert "50637.1836 is that of alpaca-7b alone" in out
    assert without_warnings(err) == []
    there = published_sum.Published("a", naive_sum(tuned) + 0.002, 2, 97, 32)
    away = published_sum.Published("b", naive_sum(tuned) + 10, 2, 97, 32)
    monkeypatch.setattr(published_sum, "PUBLISHED", (away, there))
    out, err = check("met")
    assert f"that is the sum published for a, {there.sum}" in out
    assert without_warnings(err) == []
    monkeypatch.setattr(published_sum, "PUBLISHED", (away,))
    out, err = check("missed")
    assert "warning: none of the sums published for models of this shape" in err
    assert "(b)" in err


@pytest.fixture
def speaking(tmp_path: Path) -> tuple[Path, Path]:
    """A pair whose result has a tokenizer."""
    base, diff = tiny.write_pair(tmp_path, cfg=tiny.config(vocab_size=360))
    for folder in (base, diff):
        (folder / "tokenizer.model").write_bytes(fakes.small_model())
    return base, diff


def test_the_original_answers_beside_the_result(
    speaking: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, diff = speaking
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["recover", str(base), str(diff), str(first), "--quiet", "--test_inference"]) == 0
    assert "Who are you?\n" in capsys.readouterr().out
    assert main(["recover", str(base), str(diff), str(second), "--quiet", "--original_model", str(first)]) == 0
    out = capsys.readouterr().out
    assert out.index(f"Recovered model, {second}:") < out.index(f"Original model, {first}:")
    assert "the two answers are the same\n" in out
    scaled = {name: tensor * 1.5 for name, tensor in tiny.state(tiny.config(vocab_size=360), 7).items()}
    other = tiny.write_model(tmp_path / "other", tiny.config(vocab_size=360), scaled)
    (other / "tokenizer.model").write_bytes(fakes.small_model())
    command = ["recover", str(base), str(diff), "--quiet", f"--original-model={other}"]
    assert main([*command, str(tmp_path / "third"), "--test_inference=True"]) == 0
    assert "the two answers are not the same\n" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "fourth"), "--test_inference", "False"]) == 0
    captured = capsys.readouterr()
    assert "Original model" not in captured.out
    assert without_warnings(captured.err) == ["baize: --original_model is not asked, because --test_inference is off"]


def test_a_result_that_cannot_be_asked_is_recovered_all_the_same(
    speaking: tuple[Path, Path], pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, diff = speaking
    for number, more in enumerate((["--test_inference"], ["--original_model", str(tmp_path / "asked")])):
        if number:
            recover(base, diff, tmp_path / "asked", device="cpu", progress=False)
        out = tmp_path / f"out{number}"
        assert main(["recover", *map(str, pair), str(out), "--quiet", *more]) == 0
        captured = capsys.readouterr()
        assert f"warning: {out} was not asked: " in captured.err
        assert f"{out}/tokenizer.model: absent, wanted" in captured.err.splitlines()[-1]
        assert "Who are you?" not in captured.out
        assert verify(out).ok


ORIGINALS = {
    "a diff": ("diff", "is a weight diff, not a model"),
    "another model": ("mistral", "model_type is 'mistral', this decoder runs 'llama' only"),
    "no tokenizer": ("mute", "mute/tokenizer.model: absent, wanted a sentencepiece model"),
    "a broken tokenizer": ("garbled", "garbled/tokenizer.model: not a sentencepiece model"),
}


@pytest.mark.parametrize("case", ORIGINALS)
def test_an_original_that_cannot_be_asked_is_refused_before_the_work(
    case: str, speaking: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny.config(vocab_size=360)
    mistral = tiny.config(vocab_size=360, model_type="mistral", architectures=["MistralForCausalLM"])
    for name, config in (("mistral", mistral), ("mute", cfg), ("garbled", cfg)):
        folder = tiny.write_model(tmp_path / name, config, tiny.state(cfg, 7))
        if name != "mute":
            (folder / "tokenizer.model").write_bytes(b"?" if name == "garbled" else fakes.small_model())
    given, told = ORIGINALS[case]
    original = speaking[1] if given == "diff" else tmp_path / given
    command = ["recover", *map(str, speaking), str(tmp_path / "out"), "--original_model", str(original), "--quiet"]
    assert main(command) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_original_that_is_not_there_is_refused_before_the_work(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["recover", *map(str, pair), str(tmp_path / "out"), "--original_model", str(tmp_path / "nowhere")]
    assert main(command) == 1
    assert "nowhere does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
