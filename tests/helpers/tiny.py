"""Seeded tiny LLaMA checkpoints in the published shape: base (fp16 .bin shards, inv_freq) and diff (fp32, one more row)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float16",
}


def config(**changes: object) -> dict:
    return {**CONFIG, **changes}


def state(cfg: dict, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 0.05) -> dict[str, torch.Tensor]:
    """Random weights of a LLaMA of this config under transformers' names; norms near one."""
    g = torch.Generator().manual_seed(seed)
    h, i, v = cfg["hidden_size"], cfg["intermediate_size"], cfg["vocab_size"]
    d = cfg.get("head_dim") or h // cfg["num_attention_heads"]
    q, kv = cfg["num_attention_heads"] * d, (cfg.get("num_key_value_heads") or cfg["num_attention_heads"]) * d

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=g) * scale).to(dtype)

    tensors = {"model.embed_tokens.weight": normal(v, h)}
    for n in range(cfg["num_hidden_layers"]):
        p = f"model.layers.{n}."
        tensors[p + "self_attn.q_proj.weight"] = normal(q, h)
        tensors[p + "self_attn.k_proj.weight"] = normal(kv, h)
        tensors[p + "self_attn.v_proj.weight"] = normal(kv, h)
        tensors[p + "self_attn.o_proj.weight"] = normal(h, q)
        tensors[p + "mlp.gate_proj.weight"] = normal(i, h)
        tensors[p + "mlp.up_proj.weight"] = normal(i, h)
        tensors[p + "mlp.down_proj.weight"] = normal(h, i)
        tensors[p + "input_layernorm.weight"] = (1 + normal(h).float()).to(dtype)
        tensors[p + "post_attention_layernorm.weight"] = (1 + normal(h).float()).to(dtype)
    tensors["model.norm.weight"] = (1 + normal(h).float()).to(dtype)
    if not cfg.get("tie_word_embeddings"):
        tensors["lm_head.weight"] = normal(v, h)
    return tensors


def write_model(
    folder: Path, cfg: dict, tensors: dict[str, torch.Tensor], form: str = "safetensors", shards: int = 1
) -> Path:
    """Writes tensors as `form` ("safetensors" or "bin") in `shards` files, with config.json and the index of shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(cfg, indent=2))
    stem, suffix = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    names = list(tensors)
    groups = [names[len(names) * s // shards : len(names) * (s + 1) // shards] for s in range(shards)]
    weight_map = {}
    for s, group in enumerate(groups):
        file = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{s + 1:05d}-of-{shards:05d}.{suffix}"
        part = {name: tensors[name].contiguous() for name in group}
        if form == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
        weight_map.update(dict.fromkeys(group, file))
    if shards > 1:
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index, indent=2))
    return folder


def inv_freq(cfg: dict, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """The rotary buffers that checkpoints of early 2023 carry, one a layer (about zero in a diff: scale=0)."""
    d = cfg["hidden_size"] // cfg["num_attention_heads"]
    freq = scale / (10000 ** (torch.arange(0, d, 2).float() / d))
    return {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": freq.clone() for n in range(cfg["num_hidden_layers"])}


def add_pad_row(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One more row, the float64 mean rounded to float32, as the reference recovery gives the base."""
    grown = dict(tensors)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            mean = tensors[name].double().mean(dim=0, keepdim=True).float()
            grown[name] = torch.cat([tensors[name].float(), mean])
    return grown


def write_pair(
    root: Path, seed: int = 0, base_form: str = "bin", diff_form: str = "bin", cfg: dict | None = None
) -> tuple[Path, Path]:
    """root/base (fp16, 3 shards, inv_freq) and root/diff (fp32, 2 shards, one more row, inv_freq about zero)."""
    cfg = cfg or config()
    base = {**state(cfg, seed, torch.float16), **{k: v.half() for k, v in inv_freq(cfg).items()}}
    tuned_cfg = {**cfg, "vocab_size": cfg["vocab_size"] + 1, "torch_dtype": "float32"}
    diff = {**state(tuned_cfg, seed + 1, torch.float32, scale=0.003), **inv_freq(cfg, scale=0.0)}
    for name in diff:
        if name.endswith("norm.weight"):
            diff[name] = diff[name] - 1  # a diff's norm weights are small differences, not weights near one
    write_model(root / "base", cfg, base, base_form, shards=3)
    write_model(root / "diff", tuned_cfg, diff, diff_form, shards=2)
    return root / "base", root / "diff"


PROMPTS = [[1, 5, 9, 40], [1, 17], [1, *range(3, 60)]]


def model(folder: Path, seed: int = 0, scale: float = 0.3, **changes: object) -> Path:
    """A seeded random model whose next tokens vary; scale 0.05 would repeat one token."""
    cfg = config(torch_dtype="float32", **changes)
    return write_model(folder, cfg, state(cfg, seed, scale=scale))
