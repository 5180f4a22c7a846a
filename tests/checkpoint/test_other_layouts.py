"""What is told of folders whose weights lie in a layout of somebody else's, and that the remedies are right."""

from __future__ import annotations

import re
from pathlib import Path

import forked
import pytest
import tiny
import torch
from torch.distributed.checkpoint import format_utils

from baize_engine.checkpoint import other_layouts
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.other_layouts import hint_of_other_layouts
from baize_engine.errors import CheckpointError

LAYOUTS = {
    "DeepSpeed, from above": (["global_step500/", "latest", "zero_to_fp32.py", "rng_state_0.pth"], "zero_to_fp32.py . "),
    "DeepSpeed, from within": (
        ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"], "mp_rank_00.* DeepSpeed"
    ),
    "DeepSpeed in bfloat16": (["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"], "DeepSpeed"),
    "FSDP": (["__0_0.distcp", "__1_0.distcp", ".metadata"], "format_utils dcp_to_torch FOLDER pytorch_model.bin"),
    "llama.cpp": (["llama-7b.Q4_K_M.gguf"], "nothing can be added"),
    "old llama.cpp": (["ggml-model-q4_0.bin"], "nothing can be added"),
    "GPTQ": (["quantize_config.json", "llama-7b-4bit-128g.safetensors"], "128g.safetensors holds quantised weights"),
    "GPTQ by its name": (["vicuna-4bit-128g.pt"], "GPTQ"),
    "AWQ": (["llama-7b-awq.safetensors"], "AWQ"),
    "Flax": (["flax_model-00001-of-00002.msgpack", "flax_model.msgpack.index.json"], "from_flax=True"),
    "TensorFlow": (["tf_model.h5"], "from_tf=True"),
    "one torch file": (
        ["config.json", "checkpoint.pt", "optimizer.pt"], "if checkpoint.pt is .* rename it to pytorch_model.bin$"
    ),
    "Lightning": (["epoch=3.ckpt"], "if epoch=3.ckpt is "),
    "safetensors by another name": (["llama-7b.safetensors", "x.pt"], "if llama-7b.safetensors is .* model.safetensors$"),
    "several torch files": (
        ["b.pt", "a.pt", "c.pt", "training_args.bin"],
        "if the 3 files such as a.pt are .* rename them to pytorch_model-00001-of-00003.bin "
        "to pytorch_model-00003-of-00003.bin$",
    ),
    "no weights at all": (["config.json", "optimizer.pt", "scheduler.pt", "rng_state_1.pth", "README.md"], None),
    "Meta's": (["consolidated.00.pth", "params.json"], None),
    "nothing": ([], None),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts(tmp_path: Path, case: str) -> None:
    names, wanted = LAYOUTS[case]
    for name in names:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    found = hint_of_other_layouts(tmp_path)
    if wanted is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(wanted, found), found


def test_names_of_strangers_are_shown_tamed(tmp_path: Path) -> None:
    (tmp_path / ("\x1b[2J" + "x" * 200 + ".gguf")).touch()
    found = hint_of_other_layouts(tmp_path)
    assert found is not None
    assert found.isprintable()
    assert len(found) < 400


def test_work_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(other_layouts, "MOST_NAMES", 10)
    for number in range(30):
        (tmp_path / f"{number}.pt").touch()
    assert "10 files such as" in (hint_of_other_layouts(tmp_path) or "")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone"):
        hint_of_other_layouts(tmp_path / "gone")


def test_the_remedy_for_fsdp_gives_what_is_read(tmp_path: Path) -> None:
    """Run as it is told; torch writes the state dict under the name that the trainer gave it."""
    torch.save({"model": tiny.state(tiny.config())}, tmp_path / "one.pt")
    format_utils.torch_save_to_dcp(tmp_path / "one.pt", tmp_path / "dcp")
    told = hint_of_other_layouts(tmp_path / "dcp") or ""
    command = told.split("`")[1].replace("FOLDER", str(tmp_path / "dcp")).split()
    assert command[0] == "python"
    done = forked.run(command[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = read_index(tmp_path).entries
    assert {name: entry.shape for name, entry in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in tiny.state(tiny.config()).items()
    }
