"""Base and diff that do not match tensor by tensor, as other projects publish them: what is kept, left out or refused."""

from __future__ import annotations

import itertools
import json
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
    applied,
    base_state,
    fastchat_delta,
    near_mean,
    tuned_state,
    write,
)
from folders import load, same_bits, snapshot

from baize_engine import Engine, recover, verify
from baize_engine.checkpoint.manifest import read_manifest
from baize_engine.cli import main
from baize_engine.errors import MismatchError, OutputError


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
        "3 tensor(s) not in the base were stored as they are, in float16: model." in note
        for note in result.manifest.notes
    )
    assert result.extra_rows == 3
    assert verify(tmp_path / "out").ok
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "llava"
    again = recover(*pair, tmp_path / "out", **SETTINGS, keep_extra=True, resume=True)
    assert again.finished_before
    with pytest.raises(OutputError, match="is not empty"):
        recover(*pair, tmp_path / "out", **SETTINGS, keep_extra=True, new_rows="mean")


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
        r".*a base of 96 rows fits.*--drop_rows leaves out the base's last 2 row",
    ):
        recover(*pair, tmp_path / "out", **SETTINGS)
    result = recover(*pair, tmp_path / "out", **SETTINGS, drop_rows=True)
    same_bits(load(tmp_path / "out"), applied(base, diff, "mean"))
    assert f"the last 2 tokens of {pair[0]} were left out: " in result.manifest.notes[0]


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
    assert f"the last 96 tokens of {pair[0]} were left out: " in result.manifest.notes[0]


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
