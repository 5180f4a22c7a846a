"""What refuses a plan though its shapes fit: other kinds of models, and sides that were swapped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from families import (
    CFG,
    SETTINGS,
    alpaca_diff,
    applied,
    base_state,
    near_mean,
    tuned_state,
    write,
)
from folders import load, same_bits

from baize_engine import make_diff, recover
from baize_engine.errors import MismatchError


@pytest.mark.parametrize(
    "config",
    [{"model_type": "gpt2"}, {"architectures": ["GPT2LMHeadModel"]}, {"model_type": "llava"}],
)
def test_configs_of_other_kinds_of_models_are_refused(tmp_path: Path, config: dict) -> None:
    base = base_state()
    diff = alpaca_diff(base, tuned_state(base, near_mean(1)))
    pair = write(tmp_path, base, diff, **config)
    ((key, value),) = config.items()
    with pytest.raises(MismatchError) as refused:
        recover(*pair, tmp_path / "out", **SETTINGS)
    assert f"{key} is {CFG[key]!r} in {pair[0]}/config.json and {value!r} in {pair[1]}/config.json" in str(
        refused.value
    )
    assert "--keep_extra if the finetune holds the base's model and more, or --force" in str(refused.value)
    recover(*pair, tmp_path / "forced", **SETTINGS, force=True)
    same_bits(load(tmp_path / "forced"), applied(base, diff, "mean"))


def test_base_and_diff_swapped_are_told(tmp_path: Path) -> None:
    base = base_state()
    path_base, path_diff = write(tmp_path, base, alpaca_diff(base, tuned_state(base, near_mean(1))))
    with pytest.raises(MismatchError, match=r"diff, given as the base, looks like a weight diff, .*were the two sw"):
        recover(path_diff, path_base, tmp_path / "out", **SETTINGS)
    with pytest.raises(MismatchError, match=r"diff, given as the base, looks like a weight diff \("):
        recover(path_diff, shutil.copytree(path_diff, tmp_path / "copy"), tmp_path / "out", **SETTINGS)


def test_make_diff_tells_of_swapped_folders_too(tmp_path: Path) -> None:
    base = base_state()
    path_base, path_diff = write(tmp_path, base, alpaca_diff(base, tuned_state(base, near_mean(1))))
    with pytest.raises(
        MismatchError, match=r"diff, given as the base, looks like a weight diff, .*were the two swapped"
    ):
        make_diff(path_diff, path_base, tmp_path / "out", **SETTINGS)
    tiny.write_model(tmp_path / "tuned", {**CFG, "vocab_size": 97}, tuned_state(base, near_mean(1)))
    with pytest.raises(MismatchError, match=r"--drop_rows leaves .*; or were the two swapped\?"):
        make_diff(tmp_path / "tuned", path_base, tmp_path / "out", **SETTINGS)


@pytest.mark.parametrize("command", [recover, make_diff])
def test_one_folder_for_both_sides_is_refused(tmp_path: Path, command: Callable[..., object]) -> None:
    base, _ = tiny.write_pair(tmp_path)
    (tmp_path / "link").symlink_to(base)
    side = "diff" if command is recover else "finetuned model"
    for other in (base, f"{base}/", tmp_path / "link", base / ".." / base.name):
        with pytest.raises(MismatchError, match=f"is given both as the base and as the {side}, wanted two folders"):
            command(base, other, tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out").exists()
