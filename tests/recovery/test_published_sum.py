"""The sum of all weights that weight_diff.py takes: of buffers too, in float32 steps, within a tolerance."""

from __future__ import annotations

import shutil
from math import isnan
from pathlib import Path

import pytest
import tiny
import torch
from families import SETTINGS, alpaca_diff, base_state, near_mean, tuned_state, write
from folders import expected, load, snapshot

from baize_engine import recover
from baize_engine.cli import main
from baize_engine.errors import CheckpointError, MismatchError, RequestError
from baize_engine.recovery import published_sum

# LLaMA's head dimension, and enough layers and values that the float32 steps of the running sum matter
CONFIG = tiny.config(
    hidden_size=256, intermediate_size=512, num_hidden_layers=12, num_attention_heads=2, num_key_value_heads=2
)


def reference_sum(base: Path, diff: Path, with_buffers: bool) -> torch.Tensor:
    """What weight_diff.py computes: float32 sums of the state dict's tensors, added up in float32 in the model's order."""
    raw, delta = load(base), load(diff)
    recovered = expected(raw, delta, torch.float32)
    total: torch.Tensor | int = 0
    layer = [f"self_attn.{part}_proj.weight" for part in "qkvo"] + ["self_attn.rotary_emb.inv_freq"]
    layer += [f"mlp.{part}_proj.weight" for part in ("gate", "down", "up")]
    layer += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    names = ["model.embed_tokens.weight"]
    names += [f"model.layers.{n}.{part}" for n in range(CONFIG["num_hidden_layers"]) for part in layer]
    for name in [*names, "model.norm.weight", "lm_head.weight"]:
        if name in recovered:
            total = total + recovered[name].sum()
        elif with_buffers:
            total = total + (delta[name].float() + raw[name].float()).sum()
    assert isinstance(total, torch.Tensor)
    return total


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tiny.write_pair(tmp_path, cfg=CONFIG)


@pytest.mark.parametrize("with_buffers", [True, False])
def test_the_references_own_sum_is_met(pair: tuple[Path, Path], tmp_path: Path, with_buffers: bool) -> None:
    total = float(reference_sum(*pair, with_buffers))
    other = float(reference_sum(*pair, not with_buffers))
    assert abs(total - other) > 50  # 12 layers of 7.46 (D = 128): nobody passes the check by luck
    result = recover(*pair, tmp_path / "tuned", expect_sum=total, **SETTINGS)
    told = "with 12 rotary buffers" if with_buffers else "over the weights"
    assert len(result.checked) == 1
    assert told in result.checked[0]


def test_a_base_without_buffers_gets_those_of_its_config(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """As an old transformers would give them: the sum was published by someone whose base had them."""
    raw = {k: v.float() if k.endswith("inv_freq") else v for k, v in {**load(pair[0]), **tiny.inv_freq(CONFIG)}.items()}
    tiny.write_model(tmp_path / "with", CONFIG, raw)
    tiny.write_model(tmp_path / "without", CONFIG, {k: v for k, v in raw.items() if not k.endswith("inv_freq")})
    total = float(reference_sum(tmp_path / "with", pair[1], True))
    for base in ("with", "without"):
        result = recover(tmp_path / base, pair[1], tmp_path / f"out-{base}", expect_sum=total, **SETTINGS)
        assert "with 12 rotary buffers" in result.checked[0]


def test_the_running_float32_sum_is_what_meets_a_published_one() -> None:
    """At the size of 7B (norms about 0.4, sum about 50637) float32 steps lead further off than the scripts' tolerance."""
    g = torch.Generator().manual_seed(0)
    sums = {f"t{n}": float(v) for n, v in enumerate(torch.rand(323, generator=g, dtype=torch.float64) * 313)}
    ordered = sorted(sums)
    running = torch.tensor(0.0)
    for name in ordered:
        running = running + torch.tensor(sums[name], dtype=torch.float32)
    found = published_sum._sum("", sums)
    assert found.running == float(running)
    assert abs(found.exact - found.running) > published_sum.TOLERANCE
    assert found.distance(float(running)) == 0
    assert found.distance(found.exact) == 0
    assert found.distance(min(found.exact, found.running) - 0.02) > published_sum.TOLERANCE
    assert isnan(published_sum._sum("", {"a": float("nan")}).distance(0.0))
    assert published_sum._sum("", {"a": 1e300}).running == float("inf")


def test_a_wrong_sum_is_refused_and_leaves_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    total = float(reference_sum(*pair, True))
    before = snapshot(tmp_path)
    with pytest.raises(
        MismatchError, match=r"the sum of all weights is .* over the weights or .* with 12 rotary buffers, wanted"
    ):
        recover(*pair, tmp_path / "tuned", expect_sum=total + 0.05, **SETTINGS)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("total", [float("nan"), float("inf"), True, "12"])
def test_what_is_no_sum_is_refused_at_once(pair: tuple[Path, Path], tmp_path: Path, total: object) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(RequestError, match=rf"expect_sum is {total!r}, wanted a finite number"):
        recover(*pair, tmp_path / "tuned", expect_sum=[total], **SETTINGS)  # type: ignore[call-overload]
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("buffer", [torch.zeros(1 << 20), torch.zeros(3), torch.zeros(64, dtype=torch.int64)])
def test_a_rotary_buffer_that_cannot_be_summed_is_named_before_the_long_work(
    pair: tuple[Path, Path], tmp_path: Path, buffer: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.layers.4.self_attn.rotary_emb.inv_freq"
    diff = tiny.write_model(tmp_path / "odd", CONFIG, {**load(pair[1]), name: buffer})
    shutil.copy(pair[1] / "config.json", diff)
    recover(pair[0], diff, tmp_path / "without", **SETTINGS)  # it is left out: nobody needs it
    monkeypatch.setattr("baize_engine.recovery.run.stream", None)
    before = snapshot(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"odd.*layers\.4\.self_attn.*inv_freq is .*wanted floats of shape \[64\]"
    ):
        recover(pair[0], diff, tmp_path / "tuned", expect_sum=1.0, **SETTINGS)
    assert snapshot(tmp_path) == before


def test_a_published_sum_may_have_a_tolerance(tmp_path: Path) -> None:
    """AlpacaFarm's model_sum.txt is met within about 0.5, as numpy's isclose takes it."""
    base = base_state()
    diff = alpaca_diff(base, tuned_state(base, near_mean(1)))
    pair = write(tmp_path, base, diff)
    total = recover(*pair, tmp_path / "out", **SETTINGS).manifest.sum
    with pytest.raises(MismatchError, match=r"wanted .* within 0\.01: .*--expect_sum_atol allows for more"):
        recover(*pair, tmp_path / "no", **SETTINGS, expect_sum=total + 0.4)
    result = recover(*pair, tmp_path / "yes", **SETTINGS, expect_sum=total + 0.4, expect_sum_atol=0.5)
    assert "is met within 0.5" in result.checked[0]
    for wrong in (-1.0, float("nan"), "x"):
        with pytest.raises(RequestError, match="expect_sum_atol is"):
            recover(*pair, tmp_path / "no", **SETTINGS, expect_sum=1.0, expect_sum_atol=wrong)
    assert not (tmp_path / "no").exists()


def test_of_several_sums_the_one_that_is_missed_is_named(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    total = recover(base, diff, tmp_path / "out", **SETTINGS).manifest.sum
    outs = [tmp_path / "good", tmp_path / "bad"]
    with pytest.raises(MismatchError, match=r"bad: the sum of all weights is"):
        recover(base, [diff, diff], outs, **SETTINGS, expect_sum=[total, total + 1])


def test_the_command_takes_expectations(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    total = float(reference_sum(*pair, True))
    paths = ["recover", "--path_raw", str(pair[0]), "--path_diff", str(pair[1]), "--device", "cpu"]
    assert main([*paths, "--path_tuned", str(tmp_path / "one"), "--expect_sum", repr(total)]) == 0
    assert f"the expected sum {total} is met within 0.01" in capsys.readouterr().out
    assert main([*paths, "--path_tuned", str(tmp_path / "two"), "--expect-manifest", str(tmp_path / "one")]) == 0
    assert "every tensor is as" in capsys.readouterr().out
    assert main([*paths, "--path_tuned", str(tmp_path / "three"), "--expect_sum", "7"]) == 1
    assert not (tmp_path / "three").exists()
    with pytest.raises(SystemExit) as stop:
        main([*paths, "--path_tuned", str(tmp_path / "four"), "--expect_sum", "7", "--expect_sum", "8"])
    assert stop.value.code == 2
