"""What vocabulary rows that the base lacks are added to: what each family's own script makes must come out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from families import (
    CFG,
    SETTINGS,
    TABLES,
    alpaca_diff,
    applied,
    base_state,
    fastchat_delta,
    near_mean,
    tuned_state,
    write,
)
from folders import load, same_bits
from torch import Tensor

from baize_engine import Engine, make_diff, recover
from baize_engine.errors import MismatchError, RequestError
from baize_engine.recovery import new_rows
from baize_engine.recovery import stream as streaming
from baize_engine.recovery.new_rows import likeness


@pytest.mark.parametrize("backend", ["", "cpp-scalar", "torch"])
@pytest.mark.parametrize("count", [1, 3])
def test_vicuna_v0_holds_whole_rows(tmp_path: Path, count: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAIZE_BACKEND", backend)
    base = base_state()
    delta = fastchat_delta(base, tuned_state(base, near_mean(count)))
    result = recover(*write(tmp_path, base, delta), tmp_path / "out", **SETTINGS)
    same_bits(load(tmp_path / "out"), applied(base, delta, "zero"))
    assert (result.extra_rows, result.manifest.new_rows) == (count, "zero")
    (note,) = result.manifest.notes
    stored = "1 token of the diff is not in the base: its row was stored unchanged, because it looks whole: "
    if count > 1:
        stored = f"{count} tokens of the diff are not in the base: their rows were stored unchanged, because they look whole: "
    assert note.startswith(f"{stored}compared with the mean of the base's rows, similarity 1.00 and 1.0")
    assert note.endswith("where whole rows have at least 0.8 and 0.5 to 2.0 times (--new_rows mean adds that mean)")


def untouched(name: str, mean: Tensor) -> Tensor:
    return mean


def of_another_random_row(name: str, mean: Tensor) -> Tensor:
    """open-instruct's own make_diff let transformers draw the base's new row at random."""
    return mean + torch.randn(mean.shape, generator=torch.Generator().manual_seed(8)) * 0.05


@pytest.mark.parametrize("rows", [near_mean(1), near_mean(4), untouched, of_another_random_row])
def test_alpacas_rows_are_differences(tmp_path: Path, rows: Callable[[str, Tensor], Tensor]) -> None:
    base = base_state()
    diff = alpaca_diff(base, tuned_state(base, rows))
    result = recover(*write(tmp_path, base, diff), tmp_path / "out", **SETTINGS)
    same_bits(load(tmp_path / "out"), applied(base, diff, "mean"))
    assert result.manifest.new_rows == "mean"
    (note,) = result.manifest.notes
    it = (
        "its row, because it looks like a difference"
        if result.extra_rows == 1
        else "their rows, because they look like differences"
    )
    assert f" not in the base: the mean of the base's rows was added to {it} from it: similarity " in note
    assert note.endswith(f"(--new_rows zero stores {'it' if result.extra_rows == 1 else 'them'} unchanged)")


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_what_is_asked_for_is_done(tmp_path: Path, fill: str) -> None:
    base = base_state()
    delta = fastchat_delta(base, tuned_state(base, near_mean(2)))
    pair = write(tmp_path, base, delta)
    result = recover(*pair, tmp_path / "out", **SETTINGS, new_rows=fill)
    wanted = applied(base, delta, fill)
    same_bits(load(tmp_path / "out"), wanted)
    assert result.manifest.notes[0].endswith(f", as --new_rows {fill} says")
    with Engine.from_diff(*pair, device="cpu", new_rows=fill) as engine:
        ours = engine.generate([[1, 5, 9]])[0].token_ids
    with Engine.from_pretrained(tmp_path / "out", device="cpu") as engine:
        assert engine.generate([[1, 5, 9]])[0].token_ids == ours
    with pytest.raises(RequestError, match="new_rows is 'median', wanted 'auto', 'mean' or 'zero'"):
        recover(*pair, tmp_path / "no", **SETTINGS, new_rows="median")


def test_each_diff_of_one_pass_has_its_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a chunk cut the base's end and the new rows; the mean row is taken once for all diffs."""
    cfg = tiny.config(vocab_size=5000, hidden_size=36, num_attention_heads=3, num_key_value_heads=3)
    monkeypatch.setattr("families.CFG", cfg)
    base = base_state()
    zero = fastchat_delta(base, tuned_state(base, near_mean(3)))
    mean = alpaca_diff(base, tuned_state(base, near_mean(2), 2))
    none = {name: t for name, t in alpaca_diff(base, tuned_state(base, lambda _, mean: mean[:0], 3)).items()}
    extra = {**zero, "model.projector.weight": torch.randn(3000, 36)}
    diffs = []
    for number, diff in enumerate((zero, mean, none, extra)):
        diffs.append(write(tmp_path / str(number), base, diff)[1])
    run, asked = streaming.stream, []
    monkeypatch.setattr("baize_engine.recovery.run.stream", lambda *a, **k: run(*a, **{**k, "piece": 65536}))
    usual = new_rows.likeness
    monkeypatch.setattr(new_rows, "likeness", lambda row, mean: asked.append(id(mean)) or usual(row, mean))
    outs = [tmp_path / f"out{n}" for n in range(4)]
    recover(tmp_path / "0/base", diffs, outs, **SETTINGS, keep_extra=True)
    for out, diff, fill in zip(outs, (zero, mean, none, extra), ("zero", "mean", "mean", "zero"), strict=True):
        same_bits(load(out), applied(base, diff, fill))
    assert len(asked) == 3 + 2 + 3
    assert len(set(asked)) == 1


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_a_diff_of_ours_says_what_its_rows_are(tmp_path: Path, fill: str) -> None:
    base = base_state()
    tuned = {**tuned_state(base, of_another_random_row), "model.projector.bias": torch.tensor([1.0, -0.0, 0.0, 2.5])}
    tiny.write_model(tmp_path / "base", CFG, base)
    tiny.write_model(tmp_path / "tuned", {**CFG, "vocab_size": 97, "torch_dtype": "float32"}, tuned)
    how = {**SETTINGS, "keep_extra": True, "dtype": "float32"}
    with pytest.raises(MismatchError, match=r"model\.projector\.bias is in .*--keep_extra"):
        make_diff(tmp_path / "base", tmp_path / "tuned", tmp_path / "diff", **SETTINGS)
    made = make_diff(tmp_path / "base", tmp_path / "tuned", tmp_path / "diff", **how, new_rows=fill)
    assert made.manifest.new_rows == fill
    stored = load(tmp_path / "diff")
    if fill == "zero":
        assert torch.equal(stored[TABLES[0]][96:], tuned[TABLES[0]][96:])
    result = recover(tmp_path / "base", tmp_path / "diff", tmp_path / "out", **how)
    assert result.manifest.notes[-1].endswith(", as baize_manifest.json of the diff says")
    got = load(tmp_path / "out")
    assert result.manifest.stored == ["model.projector.bias"]
    name = "model.projector.bias"
    for each in (stored, got):  # bits: -0.0 is not 0.0
        assert torch.equal(each[name].view(torch.int32), tuned[name].view(torch.int32))
    for name in TABLES:
        assert torch.allclose(got[name], tuned[name], atol=1e-6)


def test_likeness_of_rows_that_are_nothing() -> None:
    assert likeness([1.0, 2.0], [2.0, 4.0]) == new_rows.Likeness(pytest.approx(1.0), 0.5)
    for row, mean in (([0.0, 0.0], [1.0, 1.0]), ([1.0, 1.0], [0.0, 0.0]), ([float("inf"), 1.0], [1.0, 1.0])):
        assert likeness(row, mean) == new_rows.Likeness(0.0, 0.0)
        assert not likeness(row, mean).is_whole
    assert not likeness([float("nan")], [1.0]).is_whole


def test_a_diff_of_ours_made_from_a_larger_base_refuses_a_smaller_one(tmp_path: Path) -> None:
    base = base_state()
    tuned = tuned_state(base, near_mean(1))
    grown = {**base, **{name: torch.cat([base[name], base[name][:3]]) for name in TABLES}}
    for folder, state in (("base", base), ("grown", grown), ("tuned", tuned)):
        tiny.write_model(tmp_path / folder, {**CFG, "vocab_size": state[TABLES[0]].shape[0]}, state)
    make_diff(tmp_path / "grown", tmp_path / "tuned", tmp_path / "diff", **SETTINGS, drop_rows=True)
    with pytest.raises(
        MismatchError,
        match="was made from a base that has all of its tokens, and this base lacks 1 of them: is the base",
    ):
        recover(tmp_path / "base", tmp_path / "diff", tmp_path / "out", **SETTINGS)
    recover(tmp_path / "base", tmp_path / "diff", tmp_path / "out", **SETTINGS, new_rows="mean")
    recover(tmp_path / "grown", tmp_path / "diff", tmp_path / "right", **SETTINGS, drop_rows=True, dtype="float32")
    for name, tensor in load(tmp_path / "right").items():
        assert torch.allclose(tensor, tuned[name], atol=1e-6)
