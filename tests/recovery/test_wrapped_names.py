"""Names under the prefix of a wrapper in which a model was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
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

from baize_engine import recover
from baize_engine.errors import MismatchError


@pytest.mark.parametrize("prefix", ["backbone_model.", "module.", "base_model.model.", "module.backbone_model."])
def test_what_wraps_a_model_is_taken_off(tmp_path: Path, prefix: str) -> None:
    base = base_state()
    diff = alpaca_diff(base, tuned_state(base, near_mean(1)))
    wrapped = {prefix + name: t for name, t in {**diff, **tiny.inv_freq(CFG, 0.0)}.items()}
    wrapped["reward_head.weight"] = torch.randn(1, 32)  # as a reward model of AlpacaFarm
    pair = write(tmp_path, base, wrapped)
    result = recover(*pair, tmp_path / "out", **SETTINGS, keep_extra=True)
    same_bits(
        load(tmp_path / "out"), applied(base, {**diff, "reward_head.weight": wrapped["reward_head.weight"]}, "mean")
    )
    assert f"the prefix '{prefix}' of the names in {pair[1]} was taken off" in result.manifest.notes
    assert result.manifest.stored == ["reward_head.weight"]
    assert len(result.skipped) == 2


def test_a_wrapper_that_would_give_one_name_twice_is_refused(tmp_path: Path) -> None:
    base = base_state()
    diff = alpaca_diff(base, tuned_state(base, near_mean(1)))
    wrapped = {"module." + name: t for name, t in diff.items()}
    wrapped["model.norm.weight"] = diff["model.norm.weight"]
    with pytest.raises(
        MismatchError, match=r"diff holds model\.norm\.weight twice, with and without the prefix 'module\.'"
    ):
        recover(*write(tmp_path, base, wrapped), tmp_path / "out", **SETTINGS)


def test_an_unknown_wrapper_stays(tmp_path: Path) -> None:
    base = base_state()
    diff = {"language_model." + name: t for name, t in alpaca_diff(base, tuned_state(base, near_mean(1))).items()}
    with pytest.raises(MismatchError, match=r"language_model\.model\.embed_tokens\.weight is in \S+diff but not in"):
        recover(*write(tmp_path, base, diff), tmp_path / "out", **SETTINGS, keep_extra=False)


def test_the_buffers_of_a_wrapped_model_count_in_published_sums(tmp_path: Path) -> None:
    base = {**base_state(), **{name: t * 3 for name, t in tiny.inv_freq(CFG).items()}}
    diff = alpaca_diff({k: t for k, t in base.items() if "inv_freq" not in k}, tuned_state(base_state(), near_mean(1)))
    pair = write(tmp_path / "bare", base, diff)
    total = recover(*pair, tmp_path / "out", **SETTINGS).manifest.sum + sum(
        t.double().sum().item() for name, t in base.items() if "inv_freq" in name
    )
    wrapped = [{f"module.{name}": t for name, t in state.items()} for state in (base, diff)]
    for folders in (pair, write(tmp_path / "wrapped", *wrapped)):
        result = recover(*folders, tmp_path / folders[0].parent.name / "summed", **SETTINGS, expect_sum=total)
        assert "with 2 rotary buffers" in result.checked[0]
