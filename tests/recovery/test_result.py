"""What is told of folders and results: that a diff is no model, that a result is finished, that it will not run or speak."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from fakes import small_model
from families import CFG, SETTINGS, alpaca_diff, base_state, fastchat_delta, near_mean, tuned_state, write
from folders import snapshot

from baize_engine import Engine, make_diff, quantize, recover, verify
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.manifest import read_manifest
from baize_engine.checkpoint.norms import why_diff
from baize_engine.checkpoint.tensor_reader import TensorReader
from baize_engine.checkpoint.tokenizer_files import pieces
from baize_engine.cli import main
from baize_engine.errors import BaizeError, BaizeWarning, CheckpointError, MismatchError, OutputError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_diff_is_not_taken_for_a_model(tmp_path: Path, dtype: torch.dtype) -> None:
    base = base_state()
    diff = {name: t.to(dtype) for name, t in alpaca_diff(base, tuned_state(base, near_mean(1))).items()}
    _, path = write(tmp_path, base, diff)
    told = (
        rf"{path} is a weight diff, not a model: its norm weights are at most 0\.0\d+ in size.*baize recover --path_raw"
    )
    tries: list[Callable[[], object]] = [
        lambda: Engine.from_pretrained(path, device="cpu"),
        lambda: Engine.from_pretrained(path, device="cpu", quantize="int8"),
        lambda: quantize(path, tmp_path / "int8"),
        lambda: verify(path),
    ]
    for attempt in tries:
        with pytest.raises(CheckpointError, match=told):
            attempt()
    assert not (tmp_path / "int8").exists()
    assert why_diff(read_index(tmp_path / "base")) is None


def test_a_diff_of_ours_is_not_a_model_either(tmp_path: Path) -> None:
    base = base_state()
    tiny.write_model(tmp_path / "base", CFG, base)
    tiny.write_model(tmp_path / "tuned", {**CFG, "vocab_size": 97}, tuned_state(base, near_mean(1)))
    make_diff(tmp_path / "base", tmp_path / "tuned", tmp_path / "diff", **SETTINGS)
    with pytest.raises(CheckpointError, match="is a weight diff, not a model"):
        Engine.from_pretrained(tmp_path / "diff", device="cpu")
    assert verify(tmp_path / "diff").ok  # its bytes are as they were written


def test_one_norm_near_zero_makes_no_diff(tmp_path: Path) -> None:
    base = base_state()
    for name, tensor in base.items():
        if name.endswith("norm.weight") and name != "model.norm.weight":
            tensor *= 0.01
    tiny.write_model(tmp_path / "model", CFG, base)
    assert why_diff(read_index(tmp_path / "model")) is None


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


def test_large_things_called_norms_are_not_read(tmp_path: Path) -> None:
    """A sparse file costs its maker nothing, and took a minute."""
    base = {
        **base_state(),
        "model.big_norm.weight": torch.zeros(1 << 19),
        "model.square_norm.weight": torch.zeros(32, 32),
    }
    base["model.norm.weight"] = base["model.norm.weight"] * 0
    tiny.write_model(tmp_path / "model", CFG, base)
    read = []
    usual = TensorReader.read

    def noting(self: TensorReader, *arguments: object) -> memoryview:
        read.append(self.entry.name)
        return usual(self, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorReader, "read", noting)
        assert why_diff(read_index(tmp_path / "model")) is None
    assert set(read) <= {"model.norm.weight", *(name for name in base if "layernorm" in name)}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config is .*gptq"),
        ({"num_hidden_layers": 1}, "its config says 1 layers, and the weights have 2"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures is"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
    ],
)
def test_what_this_engine_will_not_run_is_told_before_and_after(tmp_path: Path, change: dict, wanted: str) -> None:
    base = base_state()
    pair = write(tmp_path, base, alpaca_diff(base, tuned_state(base, near_mean(1))), **change)
    with pytest.warns(
        BaizeWarning, match=f"this engine will not run it; config: {wanted}|{wanted}: this engine will not run"
    ):
        recover(*pair, tmp_path / "out", **SETTINGS, force=True)
    assert any(re.search(wanted, line) for line in verify(tmp_path / "out").warnings)
    with pytest.raises(BaizeError):
        Engine.from_pretrained(tmp_path / "out", device="cpu")


def test_stored_tensors_that_the_engine_has_no_use_for_are_told(tmp_path: Path) -> None:
    base = base_state()
    diff = {**alpaca_diff(base, tuned_state(base, near_mean(1))), "reward_head.weight": torch.randn(1, 32)}
    with pytest.warns(BaizeWarning, match="this engine has no use for reward_head.weight, and will not run it"):
        recover(*write(tmp_path, base, diff), tmp_path / "out", **SETTINGS, keep_extra=True)


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


def test_what_a_finetune_says_of_its_tokens_goes_before_its_base(tmp_path: Path) -> None:
    """FastChat #484: the diff has added_tokens.json, and the base the rest of the tokenizer."""
    rows = len(pieces(small_model(), "it"))
    base, diff = tiny.write_pair(tmp_path, cfg=tiny.config(vocab_size=rows))
    (base / "tokenizer.model").write_bytes(small_model())
    (base / "special_tokens_map.json").write_text('{"pad_token": "<base>"}')
    (diff / "added_tokens.json").write_text(json.dumps({"<pad>": rows}))
    recover(base, diff, tmp_path / "out", **SETTINGS)
    assert json.loads((tmp_path / "out/added_tokens.json").read_text()) == {"<pad>": rows}
    assert not (tmp_path / "out/special_tokens_map.json").exists()
    for engine in (Engine.from_pretrained(tmp_path / "out", device="cpu"), Engine.from_diff(base, diff, device="cpu")):
        assert engine.encode("<pad>")[-1] == rows
        engine.close()


def test_from_diff_tells_what_was_done(tmp_path: Path) -> None:
    base = base_state()
    pair = write(tmp_path, base, fastchat_delta(base, tuned_state(base, near_mean(1))))
    with pytest.warns(BaizeWarning, match="1 vocabulary row.* were stored whole"):
        Engine.from_diff(*pair, device="cpu").close()
