"""What is told of folders and results: that a diff is no model, that a result is finished, that it will not run or speak."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
from families import CFG, SETTINGS, alpaca_diff, base_state, fastchat_delta, near_mean, tuned_state, write
from folders import snapshot

from baize_engine import Engine, make_diff, recover, verify
from baize_engine.checkpoint.manifest import read_manifest
from baize_engine.cli.main import main
from baize_engine.errors import BaizeError, BaizeWarning, CheckpointError, MismatchError, OutputError


def test_a_diff_of_ours_is_not_a_model_either(tmp_path: Path) -> None:
    base = base_state()
    tiny.write_model(tmp_path / "base", CFG, base)
    tiny.write_model(tmp_path / "tuned", {**CFG, "vocab_size": 97}, tuned_state(base, near_mean(1)))
    make_diff(tmp_path / "base", tmp_path / "tuned", tmp_path / "diff", **SETTINGS)
    with pytest.raises(CheckpointError, match="is a weight diff, not a model"):
        Engine.from_pretrained(tmp_path / "diff", device="cpu")
    assert verify(tmp_path / "diff").ok  # its bytes are as they were written


def test_a_second_run_says_that_it_is_finished(tmp_path: Path) -> None:
    pair = tiny.write_pair(tmp_path)
    first = recover(*pair, tmp_path / "out", **SETTINGS)
    before = snapshot(tmp_path / "out")
    with pytest.raises(
        OutputError, match=r"out is not empty: it holds this very result, finished and as it was written"
    ):
        recover(*pair, tmp_path / "out", **SETTINGS)
    again = recover(*pair, tmp_path / "out", **SETTINGS, resume=True)
    assert again.finished_before
    assert again.manifest == first.manifest == read_manifest(tmp_path / "out")
    with pytest.raises(OutputError, match="it holds a finished result of other sources, options, or"):
        recover(*pair, tmp_path / "out", **SETTINGS, dtype="bfloat16")
    shutil.copy(pair[0] / "config.json", tmp_path / "out/config.json")
    with pytest.raises(BaizeError, match="holds a finished result that is not as it was written: config"):
        recover(*pair, tmp_path / "out", **SETTINGS)
    assert snapshot(tmp_path / "out").keys() == before.keys()


def test_a_link_that_points_nowhere_is_called_so(tmp_path: Path) -> None:
    pair = tiny.write_pair(tmp_path)
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match=r"out is a broken link: it points to \S+gone, and nothing"):
        recover(*pair, tmp_path / "out", **SETTINGS)


def test_the_command_takes_a_tolerance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = base_state()
    pair = write(tmp_path, base, alpaca_diff(base, tuned_state(base, near_mean(1))))
    total = recover(*pair, tmp_path / "out", **SETTINGS).manifest.sum
    line = ["recover", *map(str, pair), str(tmp_path / "two"), "--device", "cpu", "--expect_sum", str(total + 0.4)]
    assert main(line) == 1
    assert "within 0.01" in capsys.readouterr().err
    assert main([*line, "--expect_sum_atol", "0.5"]) == 0
    told = capsys.readouterr().out
    assert "is met within 0.5" in told
    assert "1 vocabulary row(s) not in the base were added to the base's mean row" in told
    assert main([*line[:4], "--device", "cpu"]) == 1
    assert "finished and as it was written" in capsys.readouterr().err
    assert main([*line[:4], "--device", "cpu", "--resume"]) == 0
    assert "it was finished before: every byte is as it was written" in capsys.readouterr().out


def test_without_a_name_the_result_lies_beside_its_source(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    result = recover(base, diff, **SETTINGS)
    assert (result.folder, verify(result.folder).ok) == (tmp_path / "diff-recovered", True)
    (each,) = recover(base, [shutil.copytree(diff, tmp_path / "alpaca-diff")], **SETTINGS)
    assert each.folder == tmp_path / "alpaca-recovered"
    again = make_diff(base, each.folder, **SETTINGS)
    assert again.folder == tmp_path / "alpaca-recovered-diff"


def test_a_result_of_files_that_were_mended_since_is_not_the_same(tmp_path: Path) -> None:
    pair = tiny.write_pair(tmp_path)
    recover(*pair, tmp_path / "out", **SETTINGS)
    (pair[1] / "added_tokens.json").write_text('{"<pad>": 96}')
    for resume in (False, True):
        with pytest.raises(
            OutputError, match="a finished result of other sources, options, or files beside the weights"
        ):
            recover(*pair, tmp_path / "out", **SETTINGS, resume=resume)


def test_of_several_sums_the_one_that_is_missed_is_named(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    total = recover(base, diff, tmp_path / "out", **SETTINGS).manifest.sum
    outs = [tmp_path / "good", tmp_path / "bad"]
    with pytest.raises(MismatchError, match=r"bad: the sum of all weights is"):
        recover(base, [diff, diff], outs, **SETTINGS, expect_sum=[total, total + 1])


def test_verify_says_of_our_own_diff_that_it_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, diff = tiny.write_pair(tmp_path)
    tuned = recover(base, diff, tmp_path / "tuned", **SETTINGS).folder
    make_diff(base, tuned, tmp_path / "made", **SETTINGS)
    assert main(["verify", str(tmp_path / "made")]) == 0
    told = capsys.readouterr()
    assert "as written" in told.out
    assert f"warning: {tmp_path / 'made'} is a weight diff, not a model" in told.err
    (tmp_path / "link").symlink_to("gone")
    for path, wanted in (("link", "is a broken link"), ("nowhere", "does not exist")):
        assert main(["verify", str(tmp_path / path)]) == 1
        assert wanted in capsys.readouterr().err


def test_from_diff_tells_what_was_done(tmp_path: Path) -> None:
    base = base_state()
    pair = write(tmp_path, base, fastchat_delta(base, tuned_state(base, near_mean(1))))
    with pytest.warns(BaizeWarning, match="1 vocabulary row.* were stored whole"):
        Engine.from_diff(*pair, device="cpu").close()
