"""Is it the right base? Checks before the long work, while it runs and at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from folders import load, snapshot

from baize_engine import make_diff, recover, verify
from baize_engine.cli import main
from baize_engine.errors import CheckpointError, MismatchError, RequestError
from baize_engine.recovery import expect

SETTINGS = {"device": "cpu", "progress": False}
# LLaMA's head dimension, and enough layers and values that the float32 steps of the running sum matter
CONFIG = tiny.config(
    hidden_size=256, intermediate_size=512, num_hidden_layers=12, num_attention_heads=2, num_key_value_heads=2
)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tiny.write_pair(tmp_path, cfg=CONFIG)


def another_base(base: Path, change) -> Path:
    """A copy of `base` with changed tensors."""
    tensors = load(base)
    change(tensors)
    return tiny.write_model(base.parent / "other", CONFIG, tensors)


def norms(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.3.input_layernorm.weight"] *= 1.01


def one_value(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.5.mlp.up_proj.weight"][200, 7] += 0.25


def test_a_manifest_of_the_same_result(pair: tuple[Path, Path], tmp_path: Path) -> None:
    recover(*pair, tmp_path / "published", **SETTINGS)
    manifest = tmp_path / "published" / "baize_manifest.json"
    for dtype in ("float16", "bfloat16"):  # another type is compared by the sums before rounding
        result = recover(*pair, tmp_path / dtype, dtype=dtype, expect_manifest=manifest, **SETTINGS)
        assert result.checked == (f"every tensor is as {manifest} says",)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_another_base_is_found_before_the_long_work(
    pair: tuple[Path, Path], tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expect, "SMALL", 1000)  # in a published model the norms only
    recover(*pair, tmp_path / "published", **SETTINGS)
    base = another_base(pair[0], norms)
    before = snapshot(tmp_path)
    message = r"1 of 25 small tensors are not as .*model\.layers\.3\.input_layernorm\.weight; is the base"
    with pytest.raises(MismatchError, match=message):
        recover(base, pair[1], tmp_path / "out", dtype=dtype, expect_manifest=tmp_path / "published", **SETTINGS)
    assert snapshot(tmp_path) == before


def test_one_value_of_a_large_tensor_is_found_when_it_is_done(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expect, "SMALL", 1000)
    recover(*pair, tmp_path / "published", **SETTINGS)
    base = another_base(pair[0], one_value)
    before = snapshot(tmp_path)
    with pytest.raises(MismatchError, match=r"model\.layers\.5\.mlp\.up_proj\.weight has sum .* is the base the one"):
        recover(base, pair[1], tmp_path / "out", expect_manifest=tmp_path / "published", **SETTINGS)
    assert snapshot(tmp_path) == before
    with pytest.raises(MismatchError, match=r"up_proj\.weight has sum"):  # one of several refuses all
        recover(
            base,
            [pair[1]] * 2,
            [tmp_path / "a", tmp_path / "b"],
            expect_manifest=[None, tmp_path / "published"],
            **SETTINGS,
        )
    assert snapshot(tmp_path) == before


def test_a_manifest_of_another_model(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = tiny.write_pair(tmp_path / "else")
    recover(*other, tmp_path / "published", **SETTINGS)
    with pytest.raises(MismatchError, match=r"the result is not that of .*published: "):
        recover(*pair, tmp_path / "out", expect_manifest=tmp_path / "published", **SETTINGS)
    with pytest.raises(CheckpointError, match="nowhere does not exist, wanted a folder with a manifest"):
        recover(*pair, tmp_path / "out", expect_manifest=tmp_path / "nowhere", **SETTINGS)
    with pytest.raises(RequestError, match=r"expect_sum has 2 value\(s\) for 1 result"):
        recover(*pair, tmp_path / "out", expect_sum=[1.0, 2.0], **SETTINGS)  # type: ignore[call-overload]


def made_diff(pair: tuple[Path, Path], root: Path) -> Path:
    tuned = tiny.write_model(root / "tuned", CONFIG, tiny.state(CONFIG, 40))
    make_diff(pair[0], tuned, root / "made", **SETTINGS)
    return root / "made"


def test_a_diff_of_ours_knows_its_base(pair: tuple[Path, Path], tmp_path: Path) -> None:
    diff = made_diff(pair, tmp_path)
    recover(pair[0], diff, tmp_path / "good", **SETTINGS)
    tensors = {name: t.float() for name, t in load(pair[0]).items() if not name.endswith("inv_freq")}
    recover(
        tiny.write_model(tmp_path / "wide", CONFIG, tensors), diff, tmp_path / "wide-good", **SETTINGS
    )  # equal values
    base = another_base(pair[0], lambda t: t["model.layers.2.mlp.down_proj.weight"][0].add_(0.5))
    before = snapshot(tmp_path)
    message = r"made was made from another base than .*other: 1 of 111 tensors differ .*layers\.2\.mlp\.down_proj"
    with pytest.raises(MismatchError, match=message):
        recover(base, diff, tmp_path / "bad", **SETTINGS)
    assert snapshot(tmp_path) == before
    recover(base, diff, tmp_path / "forced", force=True, **SETTINGS)


def test_a_diff_without_hashes_carries_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    diff = made_diff(pair, tmp_path)
    path = diff / "baize_manifest.json"
    raw = json.loads(path.read_text())
    assert len(raw.pop("base_rows")) == 111
    path.write_text(json.dumps(raw))  # as versions before this one wrote it
    recover(another_base(pair[0], norms), diff, tmp_path / "out", **SETTINGS)
    assert verify(tmp_path / "out").ok


def test_verify_with_another_manifest_names_what_differs(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recover(*pair, tmp_path / "published", **SETTINGS)
    recover(another_base(pair[0], one_value), pair[1], tmp_path / "mine", **SETTINGS)
    report = verify(tmp_path / "mine", expect_manifest=tmp_path / "published")
    assert len(report.problems) == 1
    assert "model.layers.5.mlp.up_proj.weight in model.safetensors: SHA-256 is" in report.problems[0]
    (tmp_path / "mine" / "baize_manifest.json").unlink()  # as another tool would have written it
    shutil.copy(tmp_path / "published" / "baize_manifest.json", tmp_path / "theirs.json")
    assert main(["verify", str(tmp_path / "mine"), "--expect_manifest", str(tmp_path / "theirs.json")]) == 1
    assert "differs: model.layers.5.mlp.up_proj.weight" in capsys.readouterr().out
