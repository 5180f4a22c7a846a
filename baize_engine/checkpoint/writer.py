"""Writes safetensors checkpoints of a known layout: headers first, data at offsets in any order, names last.

Until `finish`, every file carries the suffix `.partial` and no index exists, so that nothing looks like a model before
it is one. On any exception the writer removes what it made.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType

from baize_engine.checkpoint.buffers import PAGE
from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.file_io import OutputFile, sync_folder
from baize_engine.checkpoint.os_errors import broken_link, removing, writing
from baize_engine.checkpoint.safetensors_file import encode_header
from baize_engine.errors import OutputError

PARTIAL = ".partial"
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


class CheckpointWriter:
    """Creates `folder` (or takes an empty one) and fills it with shards; a context manager that discards on exceptions.

    `write` may be called from several threads. Nothing that existed before is changed: a folder with anything in it is
    refused with OutputError, unless `resume` takes up what a killed writer of the same shards left there.
    """

    def __init__(self, folder: str | Path, shards: tuple[ShardLayout, ...], resume: bool = False) -> None:
        self.folder = Path(folder)
        self.shards = shards
        self.resume = resume
        self._where = {name: (n, offset) for n, shard in enumerate(shards) for name, offset in shard.offsets.items()}
        self._files: list[OutputFile] = []
        self._made: list[Path] = []  # removed on discard, newest first
        self._made_folders: list[Path] = []

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
        self.make_folder()
        self.open_shards()

    def make_folder(self) -> None:
        """Makes the folder, or takes an empty one."""
        if not self.resume:
            check_output(self.folder, sum(shard.nbytes for shard in self.shards))
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        for path in reversed(missing):
            self._made_folders.append(path)  # noted before it is made: Ctrl-C may come between any two lines
            try:
                with writing(path, "be made"):
                    path.mkdir()
            except OutputError as error:
                if error.errno == errno.EEXIST:
                    self._made_folders.remove(path)  # another writer's
                    raise _appeared(path) from None
                raise

    def open_shards(self) -> None:
        """Makes the `.partial` files with their headers. To resume, what has its last name becomes unfinished again."""
        if self.resume:
            index = self.folder / INDEX_NAME  # first: without it shards are not a model
            self._made += [index, self.folder / (INDEX_NAME + PARTIAL)]
            with writing(index, "be removed"):
                index.unlink(missing_ok=True)
        for shard in self.shards:
            self._files.append(self._open_shard(shard))

    def _open_shard(self, shard: ShardLayout) -> OutputFile:
        path, final = self.folder / (shard.filename + PARTIAL), self.folder / shard.filename
        reopen = False
        if self.resume:
            with writing(path):
                if final.exists() and not path.exists():
                    os.rename(final, path)  # killed between the renames of `finish`
                reopen = path.exists() and path.stat().st_size == shard.nbytes
                if not reopen:
                    path.unlink(missing_ok=True)
        self._made.append(path)
        try:
            file = OutputFile(path, shard.nbytes, reopen)
        except FileExistsError:
            self._made.remove(path)  # another writer's
            raise _appeared(path) from None
        self._opened(file, shard)
        return file

    def _opened(self, file: OutputFile, shard: ShardLayout) -> None:
        try:
            file.write_at(0, memoryview(shard.header))
        except BaseException:
            file.close()
            raise

    def partial_path(self, name: str) -> tuple[Path, int]:
        """The unfinished file that holds the tensor `name`, and its byte offset there."""
        shard, begin = self._where[name]
        return self.folder / (self.shards[shard].filename + PARTIAL), begin

    def track(self, path: Path) -> None:
        """Counts `path` among what `discard` removes."""
        self._made.append(path)

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
            self._place(name, content)
        *first, last = [shard.filename for shard in self.shards]
        for filename in first:
            self._rename(filename)
        sync_folder(self.folder)  # all other names are on the disk before the one that makes it a model
        self._rename(last)
        if first:
            sync_folder(self.folder)
            self._place(INDEX_NAME, json.dumps(self._index(), indent=2).encode())
        sync_folder(self.folder)
        for path in self._made_folders:
            sync_folder(path.parent)
        self._made.clear()
        self._made_folders.clear()

    def _place(self, name: str, content: bytes) -> None:
        partial = self.folder / (name + PARTIAL)
        self._made.append(partial)
        with writing(partial), open(partial, "wb" if self.resume else "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._rename(name)

    def _rename(self, name: str) -> None:
        """Gives a file that is whole on the disk its last name."""
        partial, final = self.folder / (name + PARTIAL), self.folder / name
        self._made.append(final)
        with writing(partial, f"be renamed to {name}"):
            os.rename(partial, final)

    def _index(self) -> dict[str, object]:
        total = sum(shard.nbytes - len(shard.header) for shard in self.shards)
        return {
            "metadata": {"total_size": total},
            "weight_map": {name: shard.filename for shard in self.shards for name in sorted(shard.offsets)},
        }

    def discard(self) -> None:
        """Closes the files and removes everything made here that `finish` has not declared whole.

        All of it is tried, whatever fails; the first failure is raised then.
        """
        failed = [error for file in self._files for error in _closing(file)]
        self._files.clear()
        failed += removing(self._made[::-1])
        self._made.clear()
        for path in reversed(self._made_folders):
            try:
                with writing(path, "be removed"):
                    path.rmdir()
            except OutputError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):  # never made, or another writer's content
                    failed.append(error)
        self._made_folders.clear()
        if failed:
            more = f"; and {len(failed) - 1} more such failure(s)" if len(failed) > 1 else ""
            raise OutputError(failed[0].errno, f"{failed[0]}{more}: remove {self.folder} before you start again")


def _closing(file: OutputFile) -> list[OutputError]:
    try:
        file.close()
    except OutputError as error:
        return [error]
    return []


def _appeared(path: Path) -> OutputError:
    return OutputError(errno.EEXIST, f"{path} appeared meanwhile: is another recovery writing here?")


def check_output(folder: Path, nbytes: int) -> None:
    """Raises OutputError unless `folder` is absent or empty and its disk has room for `nbytes`. Changes nothing."""
    with writing(folder, "be looked into"):
        there = folder.exists() or folder.is_symlink()
        if broken := broken_link(folder):
            raise OutputError(errno.ENOENT, broken)
        if there and not folder.is_dir():
            raise OutputError(errno.ENOTDIR, f"{folder} exists and is not a folder")
        found = sorted(path.name for path in folder.iterdir()) if there else []
    if found:
        if any(name.endswith(PARTIAL) for name in found):
            raise OutputError(
                errno.ENOTEMPTY,
                f"{folder} holds an unfinished result ({len(found)} files, such as {found[0]}): "
                "if no other recovery is running there, go on with --resume, or remove the folder and start again",
            )
        raise OutputError(
            errno.ENOTEMPTY,
            f"{folder} is not empty ({len(found)} entries, such as {found[0]}): wanted a new or empty folder",
        )
    check_room([(folder, nbytes)])


def check_room(needs: Iterable[tuple[Path, int]]) -> None:
    """Raises OutputError unless each folder can be made where it is to be and the disks have room for all bytes together."""
    by_disk: dict[int, list[tuple[Path, Path, int]]] = {}
    for folder, nbytes in needs:
        with writing(folder, "be made"):
            existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
            disk = existing.stat().st_dev
        if not existing.is_dir():
            raise OutputError(errno.ENOTDIR, f"{existing} is not a folder, so {folder} cannot be made in it")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(errno.EACCES, f"{existing} is not writable, so {folder} cannot be made")
        by_disk.setdefault(disk, []).append((folder, existing, nbytes))
    for group in by_disk.values():
        with writing(group[0][0], "be measured"):
            stat = os.statvfs(group[0][1])
        free, wanted = stat.f_bavail * stat.f_frsize, sum(nbytes for _, _, nbytes in group)
        if free < wanted:
            raise OutputError(
                errno.ENOSPC,
                f"{', '.join(str(folder) for folder, _, _ in group)}: {wanted / 1e9:.2f} GB are needed and the disk has "
                f"{free / 1e9:.2f} GB free",
            )
