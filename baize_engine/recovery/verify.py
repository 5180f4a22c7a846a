"""`verify`: does a folder still hold, byte for byte, what its manifest says was written?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from baize_engine.checkpoint import side_files
from baize_engine.checkpoint.config_file import read_config
from baize_engine.checkpoint.hub import folder_of
from baize_engine.checkpoint.index import CheckpointIndex, TensorEntry, read_index
from baize_engine.checkpoint.manifest import MANIFEST_NAME, RECOVER, XOR, Manifest, TensorRecord, read_manifest
from baize_engine.checkpoint.names import EMBED, count_layers
from baize_engine.checkpoint.norms import refuse_diff, why_diff
from baize_engine.checkpoint.os_errors import reading
from baize_engine.checkpoint.side_files import result_problems
from baize_engine.errors import CheckpointError, ConfigError
from baize_engine.interrupts import Check, in_threads
from baize_engine.progress import Advance, no_progress
from baize_engine.recovery.hashing import THREADS, digests, hash_file
from baize_engine.recovery.journal import is_unfinished


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        folder: the folder that was checked.
        tensors: how many tensors were compared.
        bytes: their bytes, or those of the files of a result of `xor`.
        problems: what differs, a line each; empty for an unchanged folder.
        warnings: why the model will not run, or take text, though nothing was changed.
        files: how many files were compared of a result of `xor`, which is checked file by file.
    """

    folder: Path
    tensors: int
    bytes: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    files: int = 0

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    @property
    def counted(self) -> str:
        """How much was compared, in words."""
        return f"{self.files} files" if self.files else f"{self.tensors} tensors"


def verify(
    path: str | os.PathLike[str],
    progress: Advance = no_progress,
    *,
    expect_manifest: str | os.PathLike[str] | None = None,
) -> Report:
    """Compares every tensor and every file beside the weights with the manifest in the folder. Reads the whole folder once.

    Arguments:
        path: a folder that `recover`, `make_diff` or `xor` wrote, or a hub id.
        progress: called with the bytes read since its last call, from any thread.
        expect_manifest: a manifest, or a folder that has one, to compare the tensors with instead of the folder's own; the
            files beside the weights are then left out.

    Returns a Report whose `problems` name each tensor or file that differs.

    Raises:
        CheckpointError: there is no manifest, or the weights cannot be indexed at all.
    """
    folder = folder_of(path)
    if expect_manifest is None:
        _refuse(folder)
    manifest = read_manifest(folder if expect_manifest is None else Path(expect_manifest))
    if manifest.operation == XOR:
        problems = _file_problems(folder, manifest, progress)
        sizes = [path.stat().st_size for name in manifest.files if (path := folder / name).is_file()]
        return Report(folder, 0, sum(sizes), tuple(problems), files=len(sizes))
    index = read_index(folder)
    problems = [
        f"{name} is in the manifest but not in the weights" for name in manifest.tensors if name not in index.entries
    ]
    problems += [
        f"{name} is in the weights but not in the manifest" for name in index.entries if name not in manifest.tensors
    ]
    common = [entry for name, entry in index.entries.items() if name in manifest.tensors]

    def problem_of(entry: TensorEntry, check: Check) -> str | None:
        return _tensor_problem(entry, manifest.tensors[entry.name], progress, check)

    problems += filter(None, in_threads(problem_of, common, THREADS))
    if expect_manifest is None:
        problems += _file_problems(folder, manifest)
    told = _warnings(folder, index, manifest) if expect_manifest is None else ()
    return Report(folder, len(common), sum(entry.nbytes for entry in common), tuple(problems), told)


def _warnings(folder: Path, index: CheckpointIndex, manifest: Manifest) -> tuple[str, ...]:
    """What a user should know of a folder even if its bytes are as they were written."""
    if manifest.operation != RECOVER:
        diff = why_diff(index)
        return (diff,) if diff else ()
    rows = next((entry.shape[0] for name, entry in index.entries.items() if name == EMBED and entry.shape), 0)
    contents = side_files.read_beside(folder)
    return tuple(result_problems(contents, rows, count_layers(index.entries), manifest.stored, folder)) if rows else ()


def _refuse(folder: Path) -> None:
    """CheckpointError where the folder has no manifest: an unfinished result, a quantised model, or a diff of others.

    To say what it is helps more than to say that the manifest is missing.
    """
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file, wanted a folder that recover, make_diff or xor wrote")
    with reading(folder):
        if (folder / MANIFEST_NAME).exists():
            return
    if is_unfinished(folder):
        raise CheckpointError(f"{folder} holds an unfinished result: finish it with --resume, then verify it")
    if _is_quantized(folder):
        raise CheckpointError(
            f"{folder} was written by baize quantize, which records no sums, so there is nothing to verify it with: verify the "
            "model that it was made from, quantise that again and compare, for the files are the same each time"
        )
    if folder.is_dir():
        refuse_diff(read_index(folder))


def _is_quantized(folder: Path) -> bool:
    """Whether its config says that `baize quantize` wrote it."""
    try:
        described = read_config(folder).get("quantization_config")
    except (ConfigError, CheckpointError):
        return False
    return isinstance(described, dict) and described.get("quant_method") == "baize"


def _tensor_problem(entry: TensorEntry, record: TensorRecord, progress: Advance, check: Check) -> str | None:
    where = f"{entry.name} in {entry.path.name}"
    if (entry.stored_dtype, entry.shape) != (record.dtype, record.shape):
        return f"{where} is {entry.stored_dtype} {list(entry.shape)}, the manifest says {record.dtype} {list(record.shape)}"
    digest = digests(entry.path, entry.offset, entry.nbytes, check, progress)["sha256"]
    if digest != record.sha256:
        return f"{where}: SHA-256 is {digest}, the manifest says {record.sha256}"
    return None


def _file_problems(folder: Path, manifest: Manifest, progress: Advance = no_progress) -> list[str]:
    for name in manifest.files:
        if Path(name).name != name:
            raise CheckpointError(f"{folder}: the manifest names a file outside the folder: {name!r}")

    def problem_of(name: str, check: Check) -> str | None:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if hash_file(path, check, progress) != manifest.files[name]:
            return f"{name} is not the file that was written"
        return None

    return [problem for problem in in_threads(problem_of, manifest.files, THREADS) if problem]
