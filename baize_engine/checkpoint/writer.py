"""Writes safetensors checkpoints of a known layout: headers first, data at offsets in any order, names last.

Until `finish`, every file carries the suffix `.partial` and no index exists, so that nothing looks like a model before
it is one. On any exception the writer removes what it made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType

from baize_engine.checkpoint.buffers import PAGE
from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.os_errors import writing
from baize_engine.checkpoint.output_folder import PARTIAL, OutputFolder
from baize_engine.checkpoint.safetensors_file import encode_header

INDEX_NAME = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000  # transformers' customary shard size


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written: name, dtype by its canonical name, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class ShardLayout:
    """One file to be: its header and the absolute byte offset of each tensor."""

    filename: str
    header: bytes
    offsets: Mapping[str, int]
    nbytes: int  # of the whole file


def lay_out(
    specs: Iterable[TensorSpec],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> tuple[ShardLayout, ...]:
    """Deals tensors to shards in the given order, with `metadata` in each header. Pure.

    Within a shard, tensors of whole pages come first and the header is padded to a page, so that their data lies where
    O_DIRECT can write it; norms of 13B (10240 bytes each) would otherwise push every later tensor off the page grid.
    """
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if shards[-1] and filled + spec.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.nbytes
    count = len(shards)
    names = (
        ["model.safetensors"]
        if count == 1
        else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    )
    described = {"format": "pt", **(metadata or {})}
    return tuple(_lay_out_shard(name, shard, described) for name, shard in zip(names, shards, strict=True))


def _lay_out_shard(filename: str, specs: list[TensorSpec], metadata: Mapping[str, str]) -> ShardLayout:
    begins: dict[str, int] = {}
    table: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    position = 0
    for spec in sorted(specs, key=lambda spec: spec.nbytes % PAGE != 0):
        begins[spec.name] = position
        table[spec.name] = (spec.dtype, spec.shape, position, position + spec.nbytes)
        position += spec.nbytes
    header = encode_header(table, metadata, PAGE)
    return ShardLayout(filename, header, {name: len(header) + b for name, b in begins.items()}, len(header) + position)


class CheckpointWriter(OutputFolder):
    """Fills a folder with shards; a context manager that discards on exceptions. `write` may be called from several threads.

    `resume` takes up what a killed writer of the same shards left there.
    """

    def __init__(self, folder: str | Path, shards: tuple[ShardLayout, ...], resume: bool = False) -> None:
        super().__init__(folder, resume)
        self.shards = shards
        self._where = {name: (n, offset) for n, shard in enumerate(shards) for name, offset in shard.offsets.items()}

    def __enter__(self) -> CheckpointWriter:
        try:
            self.open()
        except BaseException:
            self.discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()  # after `finish` there is nothing left to discard

    def open(self) -> None:
        """Makes the folder and the `.partial` files with their headers. On an exception the caller calls `discard`."""
        self.make_folder(self.nbytes)
        self.open_shards()

    @property
    def nbytes(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    def open_shards(self) -> None:
        """Makes the `.partial` files with their headers. To resume, what has its last name becomes unfinished again."""
        if self.resume:
            index = self.folder / INDEX_NAME  # first: without it shards are not a model
            self._made += [index, self.folder / (INDEX_NAME + PARTIAL)]
            with writing(index, "be removed"):
                index.unlink(missing_ok=True)
        for shard in self.shards:
            self.open_file(shard.filename, shard.nbytes).write_at(0, memoryview(shard.header))

    def partial_path(self, name: str) -> tuple[Path, int]:
        """The unfinished file that holds the tensor `name`, and its byte offset there."""
        shard, begin = self._where[name]
        return self.folder / (self.shards[shard].filename + PARTIAL), begin

    def write(self, name: str, offset: int, view: memoryview) -> None:
        """Writes `view` at byte `offset` of the tensor `name`."""
        shard, begin = self._where[name]
        self._files[shard].write_at(begin + offset, view)

    def finish(self, files: Mapping[str, bytes]) -> None:
        """Makes the checkpoint whole: data on disk, then `files`, shards and last the index under their final names."""
        for file in self._files:
            file.sync()
            file.close()  # some filesystems tell of errors only here
        for name, content in files.items():
            self.place(name, content)
        *first, last = [shard.filename for shard in self.shards]
        for filename in first:
            self.rename(filename)
        self.sync_names()  # all other names are on the disk before the one that makes it a model
        self.rename(last)
        if first:
            self.sync_names()
            self.place(INDEX_NAME, json.dumps(self._index(), indent=2).encode())
        self.keep()

    def _index(self) -> dict[str, object]:
        total = sum(shard.nbytes - len(shard.header) for shard in self.shards)
        return {
            "metadata": {"total_size": total},
            "weight_map": {name: shard.filename for shard in self.shards for name in sorted(shard.offsets)},
        }
