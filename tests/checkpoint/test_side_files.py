"""The files beside the weights: which come along, from where, and what they keep a result from."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from fakes import small_model
from families import SETTINGS, alpaca_diff, base_state, near_mean, tuned_state, write
from folders import load, same_bits

from baize_engine import Engine, quantize, recover, verify
from baize_engine.checkpoint.side_files import collect
from baize_engine.checkpoint.vocabulary_files import pieces
from baize_engine.cli import main
from baize_engine.errors import BaizeError, BaizeWarning, CheckpointError


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tiny.write_pair(tmp_path)


def make_links(folder: Path, store: Path) -> None:
    """What clusters do: each file lies elsewhere, under another name."""
    store.mkdir()
    for path in sorted(folder.iterdir()):
        shutil.move(path, store / f"blob-{path.name}")
        path.symlink_to(store / f"blob-{path.name}")


def result(pair: tuple[Path, Path], out: Path, **more: object) -> dict[str, torch.Tensor]:
    recover(*pair, out, **SETTINGS, **more)
    assert verify(out).ok
    return load(out)


def test_a_folder_of_links_is_read_if_asked(pair: tuple[Path, Path], tmp_path: Path) -> None:
    wanted = result(pair, tmp_path / "wanted")
    for folder in pair:
        make_links(folder, tmp_path / f"store-{folder.name}")
    with pytest.raises(CheckpointError, match=r"config\.json is a link to .*, outside its folder: .*--follow_links"):
        recover(*pair, tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out").exists()
    same_bits(result(pair, tmp_path / "out", follow_links=True), wanted)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    with Engine.from_diff(*pair, device="cpu") as engine:  # writes nothing, so that no file can get into a result
        assert len(engine.generate([[1, 5]])[0].token_ids) > 0
    make_links(tmp_path / "out", tmp_path / "store-out")
    with pytest.raises(CheckpointError, match="--follow_links"):
        quantize(tmp_path / "out", tmp_path / "int8")
    assert (
        main(["quantize", "--path", f"{tmp_path}/out", "--path_quantized", f"{tmp_path}/int8", "--follow_links"]) == 0
    )
    with Engine.from_pretrained(tmp_path / "int8", device="cpu") as engine:
        assert len(engine.generate([[1, 5]])[0].token_ids) > 0


def test_side_files_come_along(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    (base / "tokenizer.model").write_bytes(b"base pieces")
    (base / "LICENSE").write_text("base terms")
    (base / "generation_config.json").write_text('{"pad_token_id": -1}')
    (diff / "LICENSE").write_text("diff terms")
    (diff / "LICENSE.txt").write_text("more")
    (diff / "training.log").write_text("not wanted")
    recover(base, diff, tmp_path / "tuned", dtype="bfloat16", device="cpu", progress=False)
    names = {p.name for p in (tmp_path / "tuned").iterdir()}
    assert names == {
        "model.safetensors", "config.json", "baize_manifest.json",
        "tokenizer.model", "LICENSE", "LICENSE.txt", "base_LICENSE",
    }  # fmt: skip
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert (config["torch_dtype"], config["vocab_size"]) == ("bfloat16", tiny.CONFIG["vocab_size"] + 1)


def test_the_tokenizer_is_never_mixed(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    (base / "tokenizer.json").write_text("{}")
    (diff / "tokenizer.model").write_bytes(b"diff pieces")
    (diff / "added_tokens.json").write_text('{"<pad>": 96}')
    recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    assert not (tmp_path / "tuned" / "tokenizer.json").exists()
    assert (tmp_path / "tuned" / "tokenizer.model").read_bytes() == b"diff pieces"
    assert (tmp_path / "tuned" / "added_tokens.json").exists()


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


@pytest.mark.parametrize("own", [{}, {"tokenizer_config.json": "{}"}, {"chat_template.jinja": "mine"}], ids=list)
def test_the_chat_template_is_the_finetunes_if_it_has_settings(tmp_path: Path, own: dict[str, str]) -> None:
    base, diff = tiny.write_pair(tmp_path)
    (base / "tokenizer.model").write_bytes(b"pieces")
    (base / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    (base / "chat_template.jinja").write_text("the base's")
    for name, content in own.items():
        (diff / name).write_text(content)
    found = collect(diff, base, "float16", tiny.CONFIG["vocab_size"])
    wanted = own.get("chat_template.jinja", None if own else "the base's")
    assert found.get("chat_template.jinja") == (None if wanted is None else wanted.encode())
    assert found["tokenizer_config.json"] == own.get("tokenizer_config.json", '{"add_bos_token": true}').encode()


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
