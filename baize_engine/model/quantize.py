"""`quantize`: copies a model with its matrices in int8 or int4, one matrix in memory at a time."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from baize_engine.checkpoint.dtypes import FLOATS
from baize_engine.checkpoint.hub import folder_of, local_path
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.names import is_recomputed
from baize_engine.checkpoint.norms import refuse_diff
from baize_engine.checkpoint.side_files import collect
from baize_engine.checkpoint.writer import CheckpointWriter, TensorSpec, lay_out
from baize_engine.errors import CheckpointError, RequestError
from baize_engine.kernels.quantized import SCHEMES, Weight
from baize_engine.model import names
from baize_engine.model.config import ModelConfig, quantization_config
from baize_engine.model.weight_loader import allocate, fill, packed_shapes, pieces_of
from baize_engine.model.weights import check


@dataclass(frozen=True)
class Quantized:
    """The result of `quantize`.

    Attributes:
        folder: where it was written.
        bytes_before: the size of all tensors in the files of `path`.
        bytes_after: their size in `folder`.
    """

    folder: Path
    bytes_before: int
    bytes_after: int


def quantize(
    path: str | os.PathLike[str],
    path_quantized: str | os.PathLike[str],
    weights: str = "int8",
    *,
    follow_links: bool = False,
) -> Quantized:
    """Writes the model in `path` to the new folder `path_quantized`, with its matrices quantised.

    The embedding and the norms keep their type. The files are safetensors, with the scheme's name in the header and in
    config.json; `Engine.from_pretrained` maps them without reading. An error leaves nothing behind.

    Arguments:
        path: a folder or a hub id.
        path_quantized: folder to write, new or empty.
        weights: "int8" or "int4".
        follow_links: as in `recover`.

    Raises:
        RequestError: an argument is wrong, or the weights are quantised already.
        CheckpointError: a file is missing or damaged, or `path` holds a diff; the message names the file and the tensor.
        OutputError: `path_quantized` cannot take the result.
    """
    if weights not in ("int8", "int4"):
        raise RequestError(f"weights is {weights!r}, wanted 'int8' or 'int4'")
    path, out = folder_of(path), local_path(path_quantized)
    index = read_index(path)
    config = ModelConfig.from_folder(path)
    if config.quantization is not None:
        raise RequestError(f"{path} holds {config.quantization} weights already")
    refuse_diff(index)
    entries = {name: entry for name, entry in index.entries.items() if not is_recomputed(name)}
    check({name: entry.shape for name, entry in entries.items()}, config, str(index.folder))
    for entry in entries.values():
        if entry.dtype not in FLOATS:
            raise CheckpointError(f"{entry.path}: {entry.name} is {entry.dtype}, wanted one of {', '.join(FLOATS)}")
    specs = [
        TensorSpec(name, stored or entries[name].dtype, shape)
        for name, (stored, shape) in packed_shapes(config, weights).items()
    ]
    files = collect(path, path, entries[names.EMBED].dtype, config.vocab_size, follow_links)
    described = {**json.loads(files["config.json"]), "quantization_config": quantization_config(weights)}
    files["config.json"] = (json.dumps(described, indent=2) + "\n").encode()
    shards = lay_out(specs, metadata={"scheme": SCHEMES[weights], "weights": weights})
    with CheckpointWriter(out, shards) as writer:
        for name, shape in names.packed(config).items():
            matrix = allocate(name, shape, entries, config, "auto", "cpu", weights)
            fill(list(pieces_of(name, entries, matrix, config)), "cpu")
            _write(writer, name, matrix)
        writer.finish(files)
    before = sum(entries[part].stored_nbytes for name in names.packed(config) for part in names.parts(name))
    return Quantized(out, before, sum(spec.nbytes for spec in specs))


def _write(writer: CheckpointWriter, name: str, matrix: Weight) -> None:
    if isinstance(matrix, torch.Tensor):
        tensors = {name: matrix}
    else:
        stem = name.removesuffix(names.WEIGHT)
        tensors = {stem + part: tensor for part, tensor in zip(names.STORED, matrix.stored, strict=False)}
    for stored, tensor in tensors.items():
        writer.write(stored, 0, tensor.contiguous().view(torch.uint8).flatten().numpy().data)
