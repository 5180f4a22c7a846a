"""One model, of random weights, in every form that an engine reads: our folders, gguf for llama.cpp, ctranslate2's folder.

All come from the same float16 weights: those of `models.random_model`, unless the store is told of others (widened.py). Each is
made when it is first asked for and kept in the store's folder. gguf and ctranslate2 are extras (`pip install .[peers]`);
embeddings and norms keep their type in every file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from models import random_model
from shapes import PRESETS, Shape
from torch import Tensor

from baize_engine.kernels.quantized import SCHEMES
from baize_engine.model import names
from baize_engine.model.quantize import quantize

FLOATS = ("float16", "bfloat16", "float32")
GGUF = ("F16", "Q8_0", "Q4_0")
CTRANSLATE2 = ("float32", "int8")
# tensors of a layer: ours -> gguf's
GGUF_LAYER = {
    names.ATTENTION_NORM: "attn_norm", names.Q: "attn_q", names.K: "attn_k", names.V: "attn_v", names.O: "attn_output",
    names.MLP_NORM: "ffn_norm", names.GATE: "ffn_gate", names.UP: "ffn_up", names.DOWN: "ffn_down",
}  # fmt: skip
GGUF_WHOLE = {names.EMBED: "token_embd", names.NORM: "output_norm", names.HEAD: "output"}


def write_model(shape: Shape, folder: Path, kind: str = "float16", seed: int = 0) -> None:
    """The float16 weights of `random_model` as a folder in transformers' form, stored as `kind`, without a tokenizer."""
    from safetensors.torch import save_file

    model = random_model(shape, "float16", "cpu", seed)
    sizes = names.shapes(model.config)
    tensors: dict[str, Tensor] = {}
    for name, weight in model.weights.items():
        parts = names.parts(name)
        tensors |= zip(parts, weight.split([sizes[part][0] for part in parts]), strict=True)
    stored = {name: tensor.to(getattr(torch, kind)).contiguous() for name, tensor in tensors.items()}
    folder.mkdir()
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = shape.config(shape.vocabulary, kind)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


class Store:
    """The forms of a preset's model, under `folder`, where they stay for later runs.

    write: writes a model of a shape, in a float type, to a new folder.
    """

    def __init__(self, folder: Path, preset: str, write: Callable[[Shape, Path, str], object] = write_model) -> None:
        self.shape, self._folder, self._write = PRESETS[preset], folder / preset, write
        self._folder.mkdir(parents=True, exist_ok=True)

    def ours(self, kind: str) -> Path:
        """A model's folder: the float16 weights in a float type, or what `baize quantize` makes of them."""
        if kind in FLOATS:
            return self._made(kind, lambda out: self._write(self.shape, out, kind))
        source = self.ours("float16")
        return self._made(f"{kind}-{SCHEMES[kind]}", lambda out: quantize(source, out, kind))

    def gguf(self, kind: str) -> Path:
        """A file for llama.cpp with matrices of `kind`, one of GGUF."""
        source = self.ours("float16")
        return self._made(f"{kind}.gguf", lambda out: write_gguf(source, self.shape, out, kind))

    def ctranslate2(self, kind: str) -> Path:
        """A folder for ctranslate2 with weights of `kind`, one of CTRANSLATE2."""
        source = self.ours("float16")
        return self._made(f"ctranslate2-{kind}", lambda out: convert_ctranslate2(source, out, kind))

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        """The path `name`, made by `make` under another name first: what has its name is whole."""
        path, partial = self._folder / name, self._folder / f"{name}.partial"
        if not path.exists():
            if partial.is_dir():
                shutil.rmtree(partial)
            partial.unlink(missing_ok=True)
            make(partial)
            os.replace(partial, path)
        return path


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of q or k (heads * dim, K) for llama.cpp, which turns neighbours where we turn n and n + dim / 2 of a head."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def gguf_tensors(source: Path, shape: Shape) -> Iterator[tuple[str, Tensor]]:
    """(gguf's name, values) of every weight of the model folder `source`."""
    from safetensors import safe_open

    with safe_open(source / "model.safetensors", "pt") as file:
        for name, theirs in GGUF_WHOLE.items():
            yield f"{theirs}.weight", file.get_tensor(name)
        for number in range(shape.layers):
            for part, theirs in GGUF_LAYER.items():
                weight = file.get_tensor(names.layer(number, part))
                turned = part in (names.Q, names.K)
                yield f"blk.{number}.{theirs}.weight", interleaved(weight, shape.heads) if turned else weight


def write_gguf(source: Path, shape: Shape, path: Path, kind: str) -> None:
    """The model folder `source` as a gguf file without a vocabulary: the embedding F16, matrices as gguf quantises them."""
    from gguf import GGMLQuantizationType as Type
    from gguf import GGUFWriter, LlamaFileType
    from gguf.quants import quantize as encode

    writer = GGUFWriter(path, "llama", use_temp_file=True)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_context_length(shape.positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(float(str(shape.config(shape.vocabulary, "")["rms_norm_eps"])))
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    for name, weight in gguf_tensors(source, shape):
        stored = Type.F32 if weight.dim() == 1 else Type[kind]
        if name == "token_embd.weight" or weight.shape[-1] % 32:  # a block of theirs has 32 columns
            stored = Type.F16
        values = weight.numpy() if stored is Type.F16 else encode(weight.float().numpy(), stored)
        writer.add_tensor(name, values, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class _Ids:
    """What the converter asks of a tokenizer, for a model without one: ids as tokens "0", "1", ..."""

    bos_token, eos_token, unk_token, name_or_path = "1", "2", "0", ""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return {str(number): number for number in range(self._vocabulary)}


def convert_ctranslate2(source: Path, folder: Path, kind: str) -> None:
    """The model folder `source` by ctranslate2's converter."""
    from ctranslate2.converters import TransformersConverter

    stored = "int8_float32" if kind == "int8" else kind  # what it computes in beside the products
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]

    class Converter(TransformersConverter):
        def load_tokenizer(self, tokenizer_class: Any, model_name_or_path: str, **options: Any) -> Any:
            return _Ids(vocabulary)

    Converter(str(source), load_as_float16=kind != "float32").convert(str(folder), quantization=stored)


def missing(*packages: str) -> str | None:
    """What is said where a package is not installed; None where all are."""
    absent = [name for name in packages if find_spec(name) is None]
    return f"{', '.join(absent)} not installed" if absent else None
