"""Results that nobody named: where they go, and that the command says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from baize_engine import verify
from baize_engine.cli import main
from baize_engine.errors import RequestError
from baize_engine.recovery.output_name import all_tuned_beside, diff_beside, tuned_beside


@pytest.mark.parametrize(
    ("diff", "out"),
    [
        ("open-instruct-baize-13b-diff", "open-instruct-baize-13b-recovered"),
        ("models/alpaca-7b-wdiff/", "models/alpaca-7b-recovered"),
        ("vicuna-13b-delta-v1.1", "vicuna-13b-v1.1-recovered"),
        ("zhixi-diff-fp16", "zhixi-fp16-recovered"),
        ("bayling_7b_weight_diff", "bayling_7b-recovered"),
        ("LLaVA-7b-Delta", "LLaVA-7b-recovered"),
        ("/data/diff", "/data/diff-recovered"),
        ("different", "different-recovered"),
        ("UltraLM-13b", "UltraLM-13b-recovered"),
        ("../x-diff", "../x-recovered"),
        ("allenai/open-instruct-baize-13b-diff", "open-instruct-baize-13b-recovered"),
        ("hub/models--jayelm--llama-7b-gist-diff/snapshots/0a1b", "llama-7b-gist-recovered"),
        ("/snapshots/x", "/snapshots/x-recovered"),
        (
            "oasst-sft-6-llama-30b-xor/oasst-sft-6-llama-30b-xor/",
            "oasst-sft-6-llama-30b-xor/oasst-sft-6-llama-30b-recovered",
        ),
        ("OpenAssistant/oasst-sft-7-llama-30b-xor", "oasst-sft-7-llama-30b-recovered"),
        ("llama-xors", "llama-recovered"),
        ("./pygmalion-7b/xor_encoded_files", "pygmalion-7b/xor_encoded_files-recovered"),
        ("BELLE-LLAMA-EXT-7B-enc", "BELLE-LLAMA-EXT-7B-recovered"),
        ("luxor-encoder", "luxor-encoder-recovered"),
    ],
)
def test_the_name_of_a_result(diff: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tuned_beside(diff) == Path(out)


def test_names_that_meet_or_that_there_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(map(str, all_tuned_beside(["x-diff", "y-diff"]))) == ["x-recovered", "y-recovered"]
    assert list(map(str, all_tuned_beside(["x-diff", "x-delta"]))) == ["x-diff-recovered", "x-delta-recovered"]
    assert diff_beside("baize-13b/") == Path("baize-13b-diff")
    assert diff_beside(".") == tmp_path.with_name(tmp_path.name + "-diff")
    (tmp_path / "own" / "x-diff").mkdir(parents=True)
    assert tuned_beside("own/x-diff") == Path("own/x-recovered")  # a folder that exists comes before a hub id
    with pytest.raises(RequestError, match="/ has no name"):
        tuned_beside("/")


def test_results_beside_their_diffs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, diff = tiny.write_pair(tmp_path)
    diff, other = diff.rename(tmp_path / "one-diff"), tmp_path / "two-delta"
    other.symlink_to(diff)
    command = ["recover", str(base), "--path_diff", str(diff), "--path_diff", str(other), "--quiet"]
    assert main(command) == 0
    out = capsys.readouterr().out
    for folder in (tmp_path / "one-recovered", tmp_path / "two-recovered"):
        assert verify(folder).ok
        assert str(folder) in out.splitlines()[0]
        assert f"tensors in {folder}," in out
    assert main(command) == 1  # what is there is not overwritten
    assert "one-recovered is not empty" in capsys.readouterr().err
    assert main(["make_diff", str(base), str(tmp_path / "one-recovered"), "--quiet"]) == 0
    assert verify(tmp_path / "one-recovered-diff").ok
