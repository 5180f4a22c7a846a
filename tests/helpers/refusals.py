"""Pairs of base and diff that do not fit each other, with the error and the message that each must meet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import tiny
import torch
from folders import load

from baize_engine.errors import BaizeError, CheckpointError, MismatchError


def remove_tensor(folder: Path, name: str) -> None:
    tensors = load(folder)
    del tensors[name]
    cfg = json.loads((folder / "config.json").read_text())
    shutil.rmtree(folder)
    tiny.write_model(folder, cfg, tensors)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def smaller_base(base: Path, diff: Path) -> None:
    shutil.rmtree(base)
    cfg = tiny.config(hidden_size=16, num_hidden_layers=1)
    tiny.write_model(base, cfg, tiny.state(cfg))


def whole_model(base: Path, diff: Path) -> None:
    cfg = json.loads((diff / "config.json").read_text())
    shutil.rmtree(diff)
    tiny.write_model(diff, cfg, tiny.state(cfg, 9))


def pointer(base: Path, diff: Path) -> None:
    shard = sorted(diff.glob("*.bin"))[0]
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def integer_tensor(base: Path, diff: Path) -> None:
    tensors = load(diff)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int32)
    cfg = json.loads((diff / "config.json").read_text())
    shutil.rmtree(diff)
    tiny.write_model(diff, cfg, tensors)


REFUSALS = {
    "wrong size": (
        smaller_base,
        MismatchError,
        "wrong size of base.*1 layers of hidden size 16.*2 layers of hidden size 32",
    ),
    "missing in diff": (
        lambda b, d: remove_tensor(d, "model.norm.weight"),
        MismatchError,
        "model.norm.weight is in .*base",
    ),
    "missing in base": (lambda b, d: remove_tensor(b, "lm_head.weight"), MismatchError, "lm_head.weight is in .*diff"),
    "eps differs": (lambda b, d: edit_config(b, rms_norm_eps=1e-5), MismatchError, "rms_norm_eps is 1e-05 .*1e-06"),
    "positions differ": (
        lambda b, d: edit_config(d, max_position_embeddings=4096),
        MismatchError,
        "max_position_embeddings",
    ),
    "theta differs": (lambda b, d: edit_config(b, rope_theta=1e6), MismatchError, "rope_theta"),
    "heads differ": (lambda b, d: edit_config(b, num_attention_heads=2), MismatchError, "num_attention_heads"),
    "rope differs": (
        lambda b, d: edit_config(d, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
        MismatchError,
        "rope is",
    ),
    "whole model": (whole_model, MismatchError, "looks like a whole model"),
    "adapter": (lambda b, d: (d / "adapter_config.json").write_text("{}"), CheckpointError, "LoRA"),
    "lfs pointer": (pointer, CheckpointError, "git lfs pull"),
    "no folder": (lambda b, d: shutil.rmtree(b), BaizeError, "base"),
    "missing shard": (
        lambda b, d: sorted(b.glob("*.bin"))[1].unlink(),
        CheckpointError,
        "pytorch_model-00002-of-00003.bin",
    ),
    "integers": (integer_tensor, MismatchError, "model.norm.weight .*int32"),
}
