"""Writes safetensors checkpoints of a known layout: headers first, data at offsets in any order, final names last.

Until `finish`, every file has the suffix `.partial` and there is no index, so that nothing looks like a model before it is one.
On any exception the writer removes what it made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from baize_engine.checkpoint.buffers import PAGE
from baize_engine.checkpoint.entry import TensorSpec
from baize_engine.checkpoint.os_errors import writing
from baize_engine.checkpoint.output_folder import PARTIAL, OutputFolder
from baize_engine.checkpoint.safetensors_file import encode_header

INDEX_NAME = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000  # the usual shard size of transformers


@dataclass(frozen=True)
class ShardLayout:
    """A file to be written: its header and the byte offset of each tensor in the file."""

    filename: str
    header: bytes
    offsets: Mapping[str, int]
    nbytes: int  # of the whole file


def lay_out(
    specs: Iterable[TensorSpec], max_shard_bytes: int = MAX_SHARD_BYTES, metadata: Mapping[str, str] | None = None
) -> tuple[ShardLayout, ...]:
    """Deal tensors to shards in the given order. Pure.

    Within a shard, tensors of whole pages come first and the header is padded to a page, so that O_DIRECT can write their
    data; norms of 13B (10240 bytes each) would otherwise push every later tensor off the page grid.

    max_shard_bytes: bytes of tensors in a shard, at most; a larger tensor has a shard of its own.
    metadata: added to the header of each shard.
    """
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if shards[-1] and filled + spec.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.nbytes
    described = {"format": "pt", **(metadata or {})}
    laid_out = []
    for number, shard in enumerate(shards, 1):
        which = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        laid_out.append(_lay_out_shard(f"model{which}.safetensors", shard, described))
    return tuple(laid_out)


def _lay_out_shard(filename: str, specs: list[TensorSpec], metadata: Mapping[str, str]) -> ShardLayout:
    table: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    position = 0
    for spec in sorted(specs, key=lambda spec: spec.nbytes % PAGE != 0):
        table[spec.name] = (spec.dtype, spec.shape, position, position + spec.nbytes)
        position += spec.nbytes
    header = encode_header(table, metadata, PAGE)
    offsets = {name: len(header) + begin for name, (_, _, begin, _) in table.items()}
    return ShardLayout(filename, header, offsets, len(header) + position)


class CheckpointWriter(OutputFolder):
    """Fills a folder with shards. Leaving the context without `finish` discards them. Several threads may call `write`.

    resume: continue what a killed writer of the same shards left.
    """

    def __init__(self, folder: str | Path, shards: tuple[ShardLayout, ...], resume: bool = False) -> None:
        super().__init__(folder, resume)
        self.shards = shards
        self._where = {name: (n, offset) for n, shard in enumerate(shards) for name, offset in shard.offsets.items()}

    def __enter__(self) -> CheckpointWriter:
        try:
            self.make_folder(self.nbytes)
            self.open_shards()
        except BaseException:
            self.discard()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()  # nothing is left to discard after `finish`

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.nbytes for shard in self.shards)

    def open_shards(self) -> None:
        """Make the `.partial` files with their headers. To resume, files with final names become unfinished again."""
        if self.resume:
            index = self.folder / INDEX_NAME  # removed first, because shards without it are not a model
            self._made += [index, self.folder / (INDEX_NAME + PARTIAL)]
            with writing(index, "be removed"):
                index.unlink(missing_ok=True)
        for shard in self.shards:
            self.open_file(shard.filename, shard.nbytes).write_at(0, memoryview(shard.header))

    def partial_path(self, name: str) -> tuple[Path, int]:
        """The unfinished file that holds the tensor `name`, and the tensor's byte offset in it."""
        shard, begin = self._where[name]
        return self.folder / (self.shards[shard].filename + PARTIAL), begin

    def write(self, name: str, offset: int, view: memoryview) -> None:
        """Write `view` at byte `offset` of the tensor `name`."""
        shard, begin = self._where[name]
        self._files[shard].write_at(begin + offset, view)

    def finish(self, files: Mapping[str, bytes]) -> None:
        """Finish the checkpoint: sync the data, then give `files`, the shards and last the index their final names.

        files: {name: content} of the files beside the weights.
        """
        for file in self._files:
            file.sync()
            file.close()  # some filesystems report errors only here
        for name, content in files.items():
            self.place(name, content)
        *first, last = self.shards
        for shard in first:
            self.rename(shard.filename)
        self.sync_names()  # the name that makes it a model comes last, when all others are on the disk
        self.rename(last.filename)
        if first:
            self.sync_names()
            total = sum(shard.nbytes - len(shard.header) for shard in self.shards)
            weight_map = {name: shard.filename for shard in self.shards for name in sorted(shard.offsets)}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            self.place(INDEX_NAME, json.dumps(index, indent=2).encode())
        self.keep()
