"""A LLaMA in Meta's original layout, and the conversion that recovery spares: both by the formulas of that layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

NAMES = {
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
BY_COLUMNS = ("attention.wo", "feed_forward.w2", "tok_embeddings")


def random_shards(
    cfg: dict, shards: int, seed: int = 0, dtype: torch.dtype = torch.float16, embedding_by_rows: bool = False
) -> list[dict[str, Tensor]]:
    """The files of a random model of `cfg`, each {Meta's name: its part}; with rope.freqs, as published."""
    g = torch.Generator().manual_seed(seed)
    hidden, inner, vocab, heads = (
        cfg[k] for k in ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads")
    )
    head = hidden // heads
    kv = (cfg.get("num_key_value_heads") or heads) * head

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=g) * 0.05).to(dtype)

    whole = {
        "tok_embeddings.weight": draw(vocab, hidden),
        "norm.weight": 1 + draw(hidden),
        "output.weight": draw(vocab, hidden),
    }
    sizes = {"attention.wq": (hidden, hidden), "attention.wk": (kv, hidden), "attention.wv": (kv, hidden),
             "attention.wo": (hidden, hidden), "feed_forward.w1": (inner, hidden), "feed_forward.w2": (hidden, inner),
             "feed_forward.w3": (inner, hidden)}  # fmt: skip
    for n in range(cfg["num_hidden_layers"]):
        whole |= {f"layers.{n}.{part}.weight": draw(*size) for part, size in sizes.items()}
        whole |= {f"layers.{n}.{part}.weight": 1 + draw(hidden) for part in ("attention_norm", "ffn_norm")}
    files: list[dict[str, Tensor]] = [{} for _ in range(shards)]
    for name, tensor in whole.items():
        columns = any(part in name for part in BY_COLUMNS) and not (embedding_by_rows and "tok_embeddings" in name)
        pieces = [tensor] * shards if tensor.dim() == 1 else tensor.chunk(shards, 1 if columns else 0)
        for file, piece in zip(files, pieces, strict=True):
            file[name] = piece.clone()
    for file in files:
        file["rope.freqs"] = torch.ones(head // 2, dtype=dtype)
    return files


def write_meta(folder: Path, cfg: dict, files: list[dict[str, Tensor]], **params: object) -> Path:
    """`files` as consolidated.NN.pth with params.json, and a tokenizer.model beside the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"dim": cfg["hidden_size"], "n_heads": cfg["num_attention_heads"], "n_layers": cfg["num_hidden_layers"],
            "norm_eps": cfg["rms_norm_eps"], "multiple_of": 256, "vocab_size": -1}  # fmt: skip
    (folder / "params.json").write_text(json.dumps({**said, **params}))
    for number, file in enumerate(files):
        torch.save(file, folder / f"consolidated.{number:02d}.pth")
    return folder


def convert(cfg: dict, files: list[dict[str, Tensor]], embedding_by_rows: bool = False) -> dict[str, Tensor]:
    """The same model under transformers' names, joined and permuted with torch."""
    heads = cfg["num_attention_heads"]
    head = cfg["hidden_size"] // heads
    converted = {}
    for name in files[0]:
        if name == "rope.freqs":
            continue
        columns = any(part in name for part in BY_COLUMNS) and not (embedding_by_rows and "tok_embeddings" in name)
        parts = [file[name] for file in files]
        whole = parts[0] if parts[0].dim() == 1 else torch.cat(parts, 1 if columns else 0)
        if ".wq." in name or ".wk." in name:
            rows = whole.shape[0]
            whole = whole.view(rows // head, head // 2, 2, whole.shape[1]).transpose(1, 2).reshape(rows, -1)
        if name.startswith("layers."):
            _, n, part = name.removesuffix(".weight").split(".", 2)
            converted[f"model.layers.{n}.{NAMES[part]}.weight"] = whole
        else:
            other = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
            converted[f"{other[name.removesuffix('.weight')]}.weight"] = whole
    return converted
