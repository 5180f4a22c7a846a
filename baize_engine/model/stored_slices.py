"""A rank's part of the matrices of a stored quantised model: codes and scales as they are stored, in new memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from baize_engine.backend.choose import quantizer
from baize_engine.checkpoint.entry import Entry, TensorEntry, columns_of, rows_of
from baize_engine.checkpoint.index import CheckpointIndex
from baize_engine.kernels.quantized import BLOCK, PANEL, Int4Weight, Int8Weight, Weight, in_rows, join, matrix
from baize_engine.model import names, old_int4
from baize_engine.model.config import ModelConfig
from baize_engine.model.share import Share
from baize_engine.model.slices import padding, range_of
from baize_engine.model.weight_loader import load

Quantized = Int8Weight | Int4Weight


class StoredSlices:
    """Reads the rank's part of one stored matrix after another to `device`. The files must fit the config."""

    def __init__(self, index: CheckpointIndex, config: ModelConfig, share: Share, device: str) -> None:
        self.entries, self.config, self.share, self.device = index.entries, config, share, device
        self.shapes, self.whole = names.shapes(config), names.packed(config)

    def read(self, name: str) -> Weight:
        """The packed weight `name` of the rank."""
        columns = self.whole[name][1]
        if name.endswith(names.BY_COLUMNS):
            parts = self._segments(name, *range_of(name, columns, self.config, self.share))
        else:
            parts = list(self._parts(name))
        return _joined(
            [in_rows(part) if self.device != "cpu" and isinstance(part, Int4Weight) else part for part in parts]
        )

    def _parts(self, name: str) -> Iterator[Quantized]:
        """The rank's rows of each of the matrices that the stored one joins, each followed by its padding."""
        first, columns = 0, self.whole[name][1]
        for part in names.parts(name):
            rows = self.shapes[part][0]
            begin, end = (first + row for row in range_of(part, rows, self.config, self.share))
            yield self._matrix(self._rows(name, begin, end), columns, begin)
            if missing := padding(part, self.config, self.share):
                zeros = torch.zeros(missing, columns, device=self.device)
                yield quantizer(self.device)(zeros, str(self.config.held))
            first += rows

    def _stored(self, name: str) -> dict[str, TensorEntry]:
        """The tensors of a stored matrix, each as a matrix or vector of whole rows or panels."""
        stem = name.removesuffix(names.WEIGHT)
        found = {part: self.entries[stem + part] for part in names.STORED if stem + part in self.entries}
        return {
            part: replace(entry, shape=(entry.shape[0], entry.numel // entry.shape[0]))
            if len(entry.shape) > 1
            else entry
            for part, entry in found.items()
        }

    @property
    def _panels(self) -> bool:
        return self.config.held == "int4"

    def _rows(self, name: str, begin: int, end: int) -> list[Tensor]:
        """The tensors of rows [begin, end), or of the panels that hold them."""
        slices: dict[str, Entry] = {}
        for part, entry in self._stored(name).items():
            in_panels = self._panels and len(entry.shape) > 1
            slices[part] = rows_of(entry, *((begin // PANEL, -(-end // PANEL)) if in_panels else (begin, end)))
        return self._load(slices)

    def _segments(self, name: str, begin: int, end: int) -> list[Quantized]:
        """The matrices of the rank's segments, whose columns are [begin, end) of the stored matrix, and padding."""
        columns = self.whole[name][1]
        slices: dict[str, Entry] = {}
        for part, entry in self._stored(name).items():
            if len(entry.shape) == 1:  # of rows, each of whose segments has them
                slices[part] = entry
                continue
            whole = entry.shape[1]
            slices[part] = columns_of(entry, whole * begin // columns, whole * end // columns)
        tensors = self._load(slices)
        count = self.share.segments
        width = end - begin
        if missing := padding(name, self.config, self.share):  # never of int4: `Share.check`
            width += missing
            tensors = [pad(tensor, (0, missing)) if tensor.dim() == 2 else tensor for tensor in tensors]
        cut = [[tensor] * count if tensor.dim() == 1 else tensor.chunk(count, 1) for tensor in tensors]
        return [self._matrix(own, width // count, 0) for own in zip(*cut, strict=True)]

    def _load(self, slices: Mapping[str, Entry]) -> list[Tensor]:
        return list(load(slices, {part: entry.dtype for part, entry in slices.items()}, self.device).values())

    def _matrix(self, tensors: Sequence[Tensor], columns: int, begin: int) -> Quantized:
        """The matrix of (rows, columns) whose tensors were read, from row `begin` of the stored matrix on."""
        if self.config.held != self.config.quantization:
            values, scales = (tensor.contiguous() for tensor in tensors)
            return old_int4.to_int8(values, scales, columns)
        if not self._panels:
            return matrix("int8", tensors, columns)
        values, scales, factors = tensors
        blocks = -(-columns // BLOCK)
        return Int4Weight(
            values.reshape(-1, blocks, PANEL * BLOCK // 2),
            scales.reshape(-1, blocks, PANEL),
            factors,
            columns,
            begin % PANEL,
        )


def _joined(parts: Sequence[Quantized]) -> Weight:
    """`join`, which takes int4 apart into rows: not where the panels of each part are whole."""
    whole = [
        part
        for part in parts
        if isinstance(part, Int4Weight) and part.in_panels and part.first == 0 and part.shape[0] % PANEL == 0
    ]
    if len(whole) < len(parts):
        return join(parts)
    tensors = [torch.cat(same) for same in zip(*(part.stored for part in whole), strict=True)]
    return matrix("int4", tensors, parts[0].shape[1])
