"""Diffs as other projects' own scripts make them, tiny."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tiny
import torch
from torch import Tensor

CFG = tiny.config()


TABLES = ("model.embed_tokens.weight", "lm_head.weight")


SETTINGS = {"device": "cpu", "progress": False}


State = dict[str, Tensor]


def base_state(seed: int = 0) -> State:
    return tiny.state(CFG, seed, torch.float16)


def tuned_state(base: State, rows: Callable[[str, Tensor], Tensor], seed: int = 1) -> State:
    """A finetune of `base`: each weight changed a little, and new vocabulary rows made from (table's name, mean row)."""
    g = torch.Generator().manual_seed(seed)
    tuned = {name: t.float() + torch.randn(t.shape, generator=g) * 0.003 for name, t in base.items()}
    for name in TABLES:
        mean = base[name].float().mean(0, keepdim=True)
        tuned[name] = torch.cat([tuned[name], rows(name, mean)])
    return tuned


def near_mean(count: int) -> Callable[[str, Tensor], Tensor]:
    """New rows as training leaves them: the embedding's as they began, the head's moved by as much as they are long."""

    def rows(name: str, mean: Tensor) -> Tensor:
        g = torch.Generator().manual_seed(5)
        moved = torch.randn(count, mean.shape[1], generator=g) * mean.std()
        return mean + moved * (0.05 if name == TABLES[0] else 1.0)

    return rows


def fastchat_delta(base: State, tuned: State) -> State:
    """fastchat/model/make_delta.py of Vicuna v0, and LLaVA's: new rows of the base are zero, other tensors whole."""
    delta = {}
    for name, tensor in tuned.items():
        grown = torch.zeros(tensor.shape, dtype=torch.float16)
        if name in base:
            grown[: base[name].shape[0]] = base[name]
        delta[name] = tensor.half() - grown
    return delta


def alpaca_diff(base: State, tuned: State) -> State:
    """weight_diff.py of alpaca: new rows of the base are its mean row."""
    diff = {}
    for name, tensor in tuned.items():
        own = base[name].float()
        grown = torch.cat([own, own.mean(0, keepdim=True).expand(tensor.shape[0] - own.shape[0], *own.shape[1:])])
        diff[name] = tensor - grown
    return diff


def write(root: Path, base: State, diff: State, **config: object) -> tuple[Path, Path]:
    rows = next((t.shape[0] for name, t in diff.items() if name.endswith(TABLES[0])), 0)
    tiny.write_model(root / "base", CFG, base)
    tiny.write_model(root / "diff", {**CFG, "vocab_size": rows, "torch_dtype": "float32", **config}, diff, "bin", 2)
    return root / "base", root / "diff"


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
