"""A trained model in a larger shape, by padding with zeros: the same function, at the larger model's cost.

For benchmarks whose result depends on what a model says, such as speculation: random weights say nothing, and the demo model
alone costs nothing. What is added:

- columns of the hidden state stay 0, so RMSNorm's mean is smaller by H / H_big: `norm` weights and epsilon make up for it;
- a head's elements: pair i turns as pair i * D_big / D of the larger head does; q makes up for the other scale of the scores;
- heads and inner columns are 0 and meet zero columns of o and down;
- layers have random matrices but o and down of 0, so that they cost as the others and add nothing;
- rows of the output matrix are copies of the row of <unk>, which no text contains: an added id never goes before it.

Exact up to the rounding of the scaled norms and q to the stored type. Zeros stay zeros in int8 and int4, and blocks of int4 do
not mix added columns with others where H, D and the inner size are multiples of a block.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from models import SPREAD
from shapes import Shape
from torch import Tensor

from baize_engine.checkpoint.side_files import collect
from baize_engine.kernels.quantized import Weight
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import tensor
from baize_engine.model.weights import load_weights

UNKNOWN = 0  # the id of <unk> in LLaMA's vocabularies


def write_widened(source: Path, shape: Shape, folder: Path, kind: str = "float16") -> None:
    """Writes the model in the folder `source`, with its tokenizer, as a model of `shape` into the new folder `folder`.

    kind: "float16", "bfloat16" or "float32", the stored type. ValueError says what of the model does not fit into `shape`.
    """
    from safetensors.torch import save_file

    small = ModelConfig.from_folder(source)
    made = widened(load_weights(source, small), small, shape)
    dtype = getattr(torch, kind)
    files = collect(source, source, kind, shape.vocabulary)
    sizes = {key: value for key, value in shape.config(shape.vocabulary, kind).items() if not key.endswith("token_id")}
    config = {
        **json.loads(files["config.json"]),
        **sizes,
        "rms_norm_eps": small.rms_norm_eps * used_columns(small, shape),
    }
    files["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    save_file({name: tensor.to(dtype) for name, tensor in made.items()}, folder / "model.safetensors", {"format": "pt"})


def used_columns(small: ModelConfig, shape: Shape) -> float:
    """The share of the larger hidden state that the small model uses."""
    return small.hidden_size / shape.hidden


def widened(weights: Mapping[str, Weight], small: ModelConfig, shape: Shape) -> dict[str, Tensor]:
    """{transformers' name: float16 tensor} of the model of `shape` that computes what `weights`, of the config `small`, do."""
    check(small, shape)
    generator = torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}
    for name, size in shape.tensors().items():
        made[name] = torch.zeros(size, dtype=torch.float16)
        if name in weights:
            put(tensor(weights[name]).float(), name, made[name], small, shape)
        elif not name.endswith((names.O + names.WEIGHT, names.DOWN + names.WEIGHT)):
            made[name].normal_(float(len(size) == 1), SPREAD, generator=generator)
    return made


def put(weight: Tensor, name: str, into: Tensor, small: ModelConfig, shape: Shape) -> None:
    """Writes `weight`, scaled where its larger surroundings ask for it, to its places in `into`."""
    if weight.dim() == 1:
        into[: len(weight)] = weight * used_columns(small, shape) ** 0.5
        return
    dim, big_dim = small.head_dim, shape.hidden // shape.heads
    starts = torch.arange(small.num_heads)[:, None] * big_dim
    pairs = torch.arange(dim // 2) * (big_dim // dim)
    turned = (starts + torch.cat([pairs, pairs + big_dim // 2])).flatten()  # q's and k's elements, by their frequencies
    mixed = (starts + torch.arange(dim)).flatten()  # v's elements, and so o's columns
    rows, columns = (torch.arange(count) for count in weight.shape)
    if names.Q in name:
        rows, weight = turned, weight * (big_dim / dim) ** 0.5
    elif names.K in name:
        rows = turned
    elif names.V in name:
        rows = mixed
    elif names.O in name:
        columns = mixed
    into[rows[:, None], columns] = weight.to(into.dtype)
    if name == names.HEAD:
        into[len(weight) :] = into[UNKNOWN]


def check(small: ModelConfig, shape: Shape) -> None:
    """ValueError where a model of the config `small` does not fit into `shape`."""
    fits = {
        "layers": (small.num_layers, shape.layers), "heads": (small.num_heads, shape.heads),
        "hidden size": (small.hidden_size, shape.hidden), "inner size": (small.intermediate_size, shape.intermediate),
        "vocabulary": (small.vocab_size, shape.vocabulary),
    }  # fmt: skip
    for what, (has, room) in fits.items():
        if has > room:
            raise ValueError(f"the model's {what} is {has}, more than the shape's {room}")
    if shape.hidden // shape.heads % small.head_dim:
        raise ValueError(
            f"heads of {shape.hidden // shape.heads} elements, wanted a multiple of the model's {small.head_dim}"
        )
    plain = ModelConfig.from_dict(shape.config(shape.vocabulary, "float16"))
    if (small.num_kv_heads, small.rope_type, small.rope_theta, small.tie_word_embeddings) != (
        small.num_heads, plain.rope_type, plain.rope_theta, plain.tie_word_embeddings
    ):  # fmt: skip
        raise ValueError("the model has grouped heads, rotary settings or a tied head, which the shape has not")
