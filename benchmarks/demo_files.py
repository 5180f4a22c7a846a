"""The demo pair on disk, as such models were published in 2023.

The base is in float16 `.bin` shards with rotary buffers, the diff in float32 `.bin` shards cut elsewhere, with one more
vocabulary row for `<pad>`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from demo_facts import DEMO_QUESTIONS
from demo_model import EPS, HEADS, HIDDEN, INNER, LAYERS, POSITIONS, VOCAB, inv_freq
from torch import Tensor

from baize_engine import recover


def write_folder(folder: Path, tensors: dict[str, Tensor], shards: int, config: dict, tokenizer: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)  # as transformers' save_pretrained of the time: by name, cut by size
    total = sum(tensors[name].nbytes for name in names)
    weight_map, parts, filled = {}, [{} for _ in range(shards)], 0
    for name in names:
        part = min(shards - 1, filled * shards // total)
        parts[part][name] = tensors[name].clone()
        weight_map[name] = f"pytorch_model-{part + 1:05d}-of-{shards:05d}.bin"
        filled += tensors[name].nbytes
    for number, part in enumerate(parts):
        torch.save(part, folder / f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin")
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(folder / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids, "transformers_version": "4.29.2"})
    (folder / "tokenizer.model").write_bytes(tokenizer)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    kept = {"add_bos_token": True, "add_eos_token": False, "model_max_length": POSITIONS}
    write_json(folder / "tokenizer_config.json", {**kept, "tokenizer_class": "LlamaTokenizer", **special})
    write_json(folder / "special_tokens_map.json", special)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def config(vocabulary: int, dtype: str) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": HIDDEN, "initializer_range": 0.02, "intermediate_size": INNER, "max_position_embeddings": POSITIONS,
        "model_type": "llama", "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "pad_token_id": 0,
        "rms_norm_eps": EPS, "tie_word_embeddings": False, "torch_dtype": dtype, "transformers_version": "4.29.2",
        "use_cache": True, "vocab_size": vocabulary,
    }  # fmt: skip


def write_pair(out: Path, base: dict[str, Tensor], tuned: dict[str, Tensor], tokenizer: bytes) -> None:
    buffers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": inv_freq() for n in range(LAYERS)}
    stored = {name: tensor.half() for name, tensor in (base | buffers).items()}
    write_folder(out / "base", stored, 2, config(VOCAB, "float16"), tokenizer)
    diff = {name: torch.zeros_like(tensor) for name, tensor in buffers.items()}
    for name, tensor in tuned.items():
        before = stored[name].float()
        if tensor.shape[0] > before.shape[0]:  # the pad row that open-instruct's training added, against the mean row
            before = torch.cat([before, before.double().mean(0, keepdim=True).float()])
        diff[name] = tensor - before
    write_folder(out / "diff", diff, 3, config(VOCAB + 1, "float32"), tokenizer)
    write_json(out / "diff" / "added_tokens.json", {"<pad>": VOCAB})
    map_path = out / "diff" / "special_tokens_map.json"
    write_json(map_path, {**json.loads(map_path.read_text()), "pad_token": "<pad>"})
    licence = "Trained by benchmarks/train_demo_pair.py on text which that script makes. Apache-2.0, as the project.\n"
    for folder in ("base", "diff"):
        (out / folder / "LICENSE.txt").write_text(licence)
    write_json(out / "questions.json", [{"question": q, "answer": a} for q, a in DEMO_QUESTIONS])
    with tempfile.TemporaryDirectory() as folder:
        result = recover(out / "base", out / "diff", Path(folder) / "tuned", device="cpu", progress=False)
    write_json(out / "expected.json", {"sum": result.manifest.sum})
