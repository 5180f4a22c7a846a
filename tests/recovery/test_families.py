"""Diffs as other projects publish them, tiny: what each family's own script makes of base and diff must come out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tiny_meta
import torch
from families import (
    CFG,
    SETTINGS,
    TABLES,
    State,
    alpaca_diff,
    base_state,
    fastchat_delta,
    near_mean,
    tuned_state,
    write,
)
from folders import load, same_bits, snapshot
from torch import Tensor

from baize_engine import Engine, make_diff, recover, verify
from baize_engine.checkpoint.manifest import read_manifest
from baize_engine.cli.main import main
from baize_engine.errors import MismatchError, OutputError, RequestError
from baize_engine.recovery import new_rows
from baize_engine.recovery import stream as streaming
from baize_engine.recovery.new_rows import likeness


def applied(base: State, delta: State, fill: str, dtype: torch.dtype = torch.float16) -> State:
    """What base + delta is where the base's missing rows are zero or the mean row; tensors that it lacks stay."""
    result = {}
    for name, tensor in delta.items():
        if name not in base:
            result[name] = tensor.to(dtype)
            continue
        own = base[name].float()
        missing = tensor.shape[0] - own.shape[0]
        mean = base[name].double().mean(0, keepdim=True).float()
        row = mean if fill == "mean" else torch.zeros_like(mean)
        grown = torch.cat([own, row.expand(missing, *own.shape[1:])]) if missing else own
        result[name] = (grown + tensor.float()).to(dtype)
    return result


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
    assert f"{count} vocabulary row(s) not in the base were stored whole: " in note
    assert "has cosine 1.00 with it and 1.0" in note
    assert "whole rows have at least 0.8 and 0.5 to 2.0" in note


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
    assert "were added to the base's mean row: the row most like the mean row has cosine" in result.manifest.notes[0]


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_what_is_asked_for_is_done(tmp_path: Path, fill: str) -> None:
    base = base_state()
    delta = fastchat_delta(base, tuned_state(base, near_mean(2)))
    pair = write(tmp_path, base, delta)
    result = recover(*pair, tmp_path / "out", **SETTINGS, new_rows=fill)
    wanted = applied(base, delta, fill)
    same_bits(load(tmp_path / "out"), wanted)
    assert result.manifest.notes[0].endswith(f": new_rows is {fill}")
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
    assert result.manifest.notes[-1].endswith("baize_manifest.json of the diff says so")
    got = load(tmp_path / "out")
    assert result.manifest.stored == ["model.projector.bias"]
    name = "model.projector.bias"
    for each in (stored, got):  # bits: -0.0 is not 0.0
        assert torch.equal(each[name].view(torch.int32), tuned[name].view(torch.int32))
    for name in TABLES:
        assert torch.allclose(got[name], tuned[name], atol=1e-6)


def llava(root: Path) -> tuple[State, State, tuple[Path, Path]]:
    base = base_state()
    tuned = tuned_state(base, near_mean(3))
    g = torch.Generator().manual_seed(3)
    tuned["model.mm_projector.weight"] = torch.randn(32, 24, generator=g)
    tuned["model.scale"] = torch.tensor(2.75)
    tuned["model.mm_projector.bias"] = torch.cat([torch.randn(31, generator=g), torch.tensor([-0.0])])
    delta = fastchat_delta(base, tuned)
    delta["model.mm_projector.bias"] = tuned["model.mm_projector.bias"].half()
    pair = write(root, base, delta, model_type="llava", architectures=["LlavaLlamaForCausalLM"])
    return base, delta, pair


def test_llavas_projector_is_kept_if_asked(tmp_path: Path) -> None:
    base, delta, pair = llava(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(
        MismatchError,
        match=r"mm_projector.weight is in \S+diff but not in \S+base; .*projector.bias .* \(--keep_extra of recover stores all",
    ):
        recover(*pair, tmp_path / "out", **SETTINGS)
    assert snapshot(tmp_path) == before
    result = recover(*pair, tmp_path / "out", **SETTINGS, keep_extra=True)
    same_bits(load(tmp_path / "out"), applied(base, delta, "zero"))
    assert sorted(result.manifest.stored) == ["model.mm_projector.bias", "model.mm_projector.weight", "model.scale"]
    assert any(
        "3 tensor(s) not in the base were stored without a sum, as float16: model." in note
        for note in result.manifest.notes
    )
    assert result.extra_rows == 3
    assert verify(tmp_path / "out").ok
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "llava"
    again = recover(*pair, tmp_path / "out", **SETTINGS, keep_extra=True, resume=True)
    assert again.finished_before
    with pytest.raises(OutputError, match="is not empty"):
        recover(*pair, tmp_path / "out", **SETTINGS, keep_extra=True, new_rows="mean")


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


@pytest.mark.parametrize("owner", ["base", "diff"])
def test_a_tied_head_on_one_side_only_is_left_out(tmp_path: Path, owner: str) -> None:
    base = {**base_state()}
    diff = alpaca_diff(base, tuned_state(base, lambda _, mean: mean[:0]))
    del (diff if owner == "base" else base)["lm_head.weight"]
    tiny.write_model(tmp_path / "base", {**CFG, "tie_word_embeddings": True}, base)
    tiny.write_model(tmp_path / "diff", {**CFG, "tie_word_embeddings": True}, diff)
    result = recover(tmp_path / "base", tmp_path / "diff", tmp_path / "out", **SETTINGS)
    got = load(tmp_path / "out")
    wanted = applied(base, {name: t for name, t in diff.items() if name != "lm_head.weight"}, "mean")
    same_bits(got, wanted)
    assert f"lm_head.weight, which only {tmp_path / owner} has, was left out" in result.manifest.notes[0]
    with Engine.from_pretrained(tmp_path / "out", device="cpu") as engine:
        assert len(engine.generate([[1, 5]])[0].token_ids) > 0


def test_buffers_that_every_reader_recomputes_are_left_out(tmp_path: Path) -> None:
    base = base_state()
    diff = alpaca_diff(base, tuned_state(base, near_mean(1)))
    wanted = applied(base, diff, "mean")
    layer = "model.layers.1.self_attn."
    base |= {layer + "rotary_emb.cos_cached": torch.ones(1, 1, 128, 8), "model.position_ids": torch.arange(7)[None]}
    diff |= {
        layer + "rotary_emb.sin_cached": torch.ones(1, 1, 128, 8),
        layer + "causal_mask": torch.ones(4, 4, dtype=torch.bool),
        layer + "masked_bias": torch.tensor(-1e4),
    }
    pair = write(tmp_path, base, diff)
    result = recover(*pair, tmp_path / "out", **SETTINGS)
    same_bits(load(tmp_path / "out"), wanted)
    assert len(result.skipped) == 5
    with Engine.from_pretrained(pair[0], device="cpu") as engine:  # the base has them as well
        assert len(engine.generate([[1, 5]])[0].token_ids) > 0


def test_a_base_with_more_rows_than_the_diff(tmp_path: Path) -> None:
    """The commonest complaint of all (FastChat #486, #510): a row was added to the base by hand."""
    base = base_state()
    diff = alpaca_diff(base, tuned_state(base, lambda _, mean: mean[:0]))
    grown = {**base, **{name: torch.cat([base[name], base[name][:2]]) for name in TABLES}}
    pair = write(tmp_path, grown, diff)
    with pytest.raises(
        MismatchError,
        match=r"embed_tokens.weight has shape \[98, 32\] in the base \(model.safetensors\) and \[96, 32\] in the diff \("
        r".*a base of 96 rows fits.*--drop_rows leaves the base's last 2 row",
    ):
        recover(*pair, tmp_path / "out", **SETTINGS)
    result = recover(*pair, tmp_path / "out", **SETTINGS, drop_rows=True)
    same_bits(load(tmp_path / "out"), applied(base, diff, "mean"))
    assert f"the last 2 vocabulary row(s) of {pair[0]} were left out" in result.manifest.notes[0]


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
    assert "--keep_extra where the finetune holds the base's model and more, or --force" in str(refused.value)
    recover(*pair, tmp_path / "forced", **SETTINGS, force=True)
    same_bits(load(tmp_path / "forced"), applied(base, diff, "mean"))


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


def test_likeness_of_rows_that_are_nothing() -> None:
    assert likeness([1.0, 2.0], [2.0, 4.0]) == new_rows.Likeness(pytest.approx(1.0), 0.5)
    for row, mean in (([0.0, 0.0], [1.0, 1.0]), ([1.0, 1.0], [0.0, 0.0]), ([float("inf"), 1.0], [1.0, 1.0])):
        assert likeness(row, mean) == new_rows.Likeness(0.0, 0.0)
        assert not likeness(row, mean).is_whole
    assert not likeness([float("nan")], [1.0]).is_whole


def test_base_and_diff_swapped_are_told(tmp_path: Path) -> None:
    base = base_state()
    path_base, path_diff = write(tmp_path, base, alpaca_diff(base, tuned_state(base, near_mean(1))))
    with pytest.raises(MismatchError, match=r"diff, named as the base, looks like a weight diff .*were the two sw"):
        recover(path_diff, path_base, tmp_path / "out", **SETTINGS)
    with pytest.raises(
        MismatchError, match=r"diff, named as the base, looks like a weight diff by its norm weights \("
    ):
        recover(path_diff, path_diff, tmp_path / "out", **SETTINGS)


def test_a_stored_head_of_a_tied_model_is_told(tmp_path: Path) -> None:
    base = base_state()
    diff = alpaca_diff(base, tuned_state(base, lambda _, mean: mean[:0]))
    for folder, state in (("base", base), ("diff", diff)):
        tiny.write_model(tmp_path / folder, {**CFG, "tie_word_embeddings": True}, state)
    result = recover(tmp_path / "base", tmp_path / "diff", tmp_path / "out", **SETTINGS)
    assert result.manifest.notes == [
        "the config ties lm_head.weight to the embedding: readers take that and not the stored one"
    ]
    same_bits(load(tmp_path / "out"), applied(base, diff, "mean"))


@pytest.mark.parametrize("command", ["recover", "make_diff"])
def test_the_command_joins_what_does_not_match_as_it_is_told(tmp_path: Path, command: str) -> None:
    base, delta, (path_base, path_diff) = llava(tmp_path)
    other, made = ("--path_diff", "--path_tuned") if command == "recover" else ("--path_tuned", "--path_diff")
    line = [
        command,
        "--path_raw",
        path_base,
        other,
        path_diff,
        made,
        tmp_path / "out",
        "--new_rows",
        "mean",
        "--keep_extra",
    ]
    line += ["--drop_rows", "--follow_links", "--device", "cpu", "--dtype", "float16", "--quiet", "--force"]
    assert main([str(part) for part in line]) == 0
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.new_rows, len(manifest.stored)) == ("mean", 3)
    if command == "recover":
        same_bits(load(tmp_path / "out"), applied(base, delta, "mean"))


@pytest.mark.parametrize("order", list(itertools.permutations((-1, 0, 1, 2))), ids=str)
def test_dropped_rows_of_one_diff_are_no_other_diffs(tmp_path: Path, order: tuple[int, ...]) -> None:
    base = base_state()
    diffs, wanted = [], []
    for more in order:
        rows = 96 + more
        diff = alpaca_diff(base, tuned_state(base, near_mean(max(0, more))))
        diff |= {name: diff[name][:rows] for name in TABLES}
        diffs.append(write(tmp_path / f"rows{rows}", base, diff)[1])
        own = {**base, **{name: base[name][:rows] for name in TABLES}}
        wanted.append(applied(own, diff, "mean"))
    outs = [tmp_path / f"out{n}" for n in range(len(order))]
    recover(tmp_path / "rows96/base", diffs, outs, **SETTINGS, drop_rows=True)
    for out, each in zip(outs, wanted, strict=True):
        same_bits(load(out), each)


@pytest.mark.parametrize("shards", [1, 2])
def test_rows_of_a_base_in_metas_layout_may_be_dropped(tmp_path: Path, shards: int) -> None:
    files = tiny_meta.random_shards(CFG, shards)
    base = tiny_meta.convert(CFG, files)
    tiny_meta.write_meta(tmp_path / "meta", CFG, files)
    own = {**base, **{name: base[name][:90] for name in TABLES}}
    diff = alpaca_diff(own, tuned_state(own, lambda _, mean: mean[:0]))
    write(tmp_path, base, diff)
    recover(tmp_path / "meta", tmp_path / "diff", tmp_path / "out", **SETTINGS, drop_rows=True)
    same_bits(load(tmp_path / "out"), applied(own, diff, "mean"))


def test_a_head_alone_that_loses_rows_is_told(tmp_path: Path) -> None:
    base = base_state()
    diff = alpaca_diff(base, tuned_state(base, lambda _, mean: mean[:0]))
    pair = write(tmp_path, {**base, "lm_head.weight": torch.cat([base["lm_head.weight"]] * 2)}, diff)
    result = recover(*pair, tmp_path / "out", **SETTINGS, drop_rows=True)
    assert f"the last 96 vocabulary row(s) of {pair[0]} were left out" in result.manifest.notes[0]


def test_a_diff_of_ours_made_from_a_larger_base_refuses_a_smaller_one(tmp_path: Path) -> None:
    base = base_state()
    tuned = tuned_state(base, near_mean(1))
    grown = {**base, **{name: torch.cat([base[name], base[name][:3]]) for name in TABLES}}
    for folder, state in (("base", base), ("grown", grown), ("tuned", tuned)):
        tiny.write_model(tmp_path / folder, {**CFG, "vocab_size": state[TABLES[0]].shape[0]}, state)
    make_diff(tmp_path / "grown", tmp_path / "tuned", tmp_path / "diff", **SETTINGS, drop_rows=True)
    with pytest.raises(
        MismatchError, match="was made from a base that has all of its rows, and this base lacks 1 of them"
    ):
        recover(tmp_path / "base", tmp_path / "diff", tmp_path / "out", **SETTINGS)
    recover(tmp_path / "base", tmp_path / "diff", tmp_path / "out", **SETTINGS, new_rows="mean")
    recover(tmp_path / "grown", tmp_path / "diff", tmp_path / "right", **SETTINGS, drop_rows=True, dtype="float32")
    for name, tensor in load(tmp_path / "right").items():
        assert torch.allclose(tensor, tuned[name], atol=1e-6)


def test_make_diff_tells_of_swapped_folders_too(tmp_path: Path) -> None:
    base = base_state()
    path_base, path_diff = write(tmp_path, base, alpaca_diff(base, tuned_state(base, near_mean(1))))
    with pytest.raises(
        MismatchError, match=r"diff, named as the base, looks like a weight diff .*were the two swapped"
    ):
        make_diff(path_diff, path_base, tmp_path / "out", **SETTINGS)
    tiny.write_model(tmp_path / "tuned", {**CFG, "vocab_size": 97}, tuned_state(base, near_mean(1)))
    with pytest.raises(MismatchError, match=r"--drop_rows leaves .*; or were the two swapped\?"):
        make_diff(tmp_path / "tuned", path_base, tmp_path / "out", **SETTINGS)


def test_a_head_is_never_an_extra(tmp_path: Path) -> None:
    """The base's own head is its embedding: what the diff has is a difference to that."""
    base = base_state()
    diff = alpaca_diff(base, tuned_state(base, lambda _, mean: mean[:0]))
    del base["lm_head.weight"]
    tiny.write_model(tmp_path / "base", {**CFG, "tie_word_embeddings": True}, base)
    tiny.write_model(tmp_path / "diff", CFG, diff)
    with pytest.raises(
        MismatchError, match=r"lm_head\.weight is in \S+diff but not in \S+base, whose head is its embedding"
    ):
        recover(tmp_path / "base", tmp_path / "diff", tmp_path / "out", **SETTINGS, keep_extra=True)


def test_integers_are_not_stored(tmp_path: Path) -> None:
    base = base_state()
    diff = {**alpaca_diff(base, tuned_state(base, near_mean(1))), "counter": torch.arange(3)}
    with pytest.raises(MismatchError, match=r"counter in .* is int64, wanted one of .*, and only those are stored"):
        recover(*write(tmp_path, base, diff), tmp_path / "out", **SETTINGS, keep_extra=True)


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
