"""What is told of results: where they lie, that a diff is no model, how new rows were made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
from families import CFG, SETTINGS, base_state, fastchat_delta, near_mean, tuned_state, write

from baize_engine import Engine, make_diff, recover, verify
from baize_engine.cli import main
from baize_engine.errors import BaizeWarning, CheckpointError


def test_a_diff_of_ours_is_not_a_model_either(tmp_path: Path) -> None:
    base = base_state()
    tiny.write_model(tmp_path / "base", CFG, base)
    tiny.write_model(tmp_path / "tuned", {**CFG, "vocab_size": 97}, tuned_state(base, near_mean(1)))
    make_diff(tmp_path / "base", tmp_path / "tuned", tmp_path / "diff", **SETTINGS)
    with pytest.raises(CheckpointError, match="is a weight diff, not a model"):
        Engine.from_pretrained(tmp_path / "diff", device="cpu")
    assert verify(tmp_path / "diff").ok  # its bytes are as they were written


def test_without_a_name_the_result_lies_beside_its_source(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    result = recover(base, diff, **SETTINGS)
    assert (result.folder, verify(result.folder).ok) == (tmp_path / "diff-recovered", True)
    (each,) = recover(base, [shutil.copytree(diff, tmp_path / "alpaca-diff")], **SETTINGS)
    assert each.folder == tmp_path / "alpaca-recovered"
    again = make_diff(base, each.folder, **SETTINGS)
    assert again.folder == tmp_path / "alpaca-recovered-diff"


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
    with pytest.warns(BaizeWarning, match="1 token of the diff is not in the base: its row was stored unchanged"):
        Engine.from_diff(*pair, device="cpu").close()
