"""A program that loads a rank's part of a model, reads all of it, and prints, in bytes, its memory after its
imports, its peak memory and the part's size.

Arguments: `rank` `ranks` `quantize` ("" for none), and a model's folder, or a base and its diff.
"""

from __future__ import annotations

import sys

import torch
from peak_memory import peak_memory

from baize_engine.checkpoint.index import read_index
from baize_engine.from_diff import CheckedDiff
from baize_engine.model.config import ModelConfig
from baize_engine.model.share import Share
from baize_engine.model.weights import load_weights, nbytes
from baize_engine.options import EngineOptions
from baize_engine.recovery.options import RecoveryOptions

PAGE = 4096


def main() -> None:
    imported = peak_memory()
    rank, ranks, quantize, *folders = sys.argv[1:]
    share, options = Share(int(rank), int(ranks)), EngineOptions("cpu", "float16", quantize or None)
    if len(folders) == 2:
        found = CheckedDiff.read(*folders, options, RecoveryOptions(force=True, progress=False))
        weights, size = found.weights(options, share, progress=False), None
    else:
        index, config = read_index(folders[0]), ModelConfig.from_folder(folders[0])
        weights = dict(load_weights(index, config, "auto", "cpu", options.quantize, share))
        size = nbytes(index, config, "auto", options.quantize, share)
    held = sum(weight.nbytes for weight in weights.values())
    assert size in (None, held)
    for weight in weights.values():
        for tensor in (weight,) if isinstance(weight, torch.Tensor) else weight.stored:
            assert not tensor.view(-1).view(torch.uint8)[::PAGE].any() or quantize
    print(imported, peak_memory(), held)  # mapped files included


if __name__ == "__main__":
    main()
