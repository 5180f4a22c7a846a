"""What a run of `recover` or `make_diff` made, and how to report it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from pathlib import Path

from baize_engine.checkpoint.manifest import Manifest, TensorRecord

FINISHED_BEFORE = "an earlier run finished it: every byte is as it was written, and nothing was redone"


@dataclass(frozen=True)
class Result:
    """What `recover` or `make_diff` made, and what to tell the user about it.

    Attributes:
        folder: where it was written.
        manifest: what the manifest in the folder says: how it was made, and each tensor's SHA-256 and sum.
        skipped: names of the buffers left out.
        extra_rows: number of vocabulary rows that the base lacks.
        resumed: number of tensors that an earlier run had finished.
        checked: expectations that were met, a line each.
        finished_before: nothing was done: an earlier run had finished it, and it is as written.
    """

    folder: Path
    manifest: Manifest
    skipped: tuple[str, ...]
    extra_rows: int
    resumed: int
    checked: tuple[str, ...] = ()
    finished_before: bool = False

    @property
    def overflowed(self) -> dict[str, TensorRecord]:
        """Tensors with finite values that the result's dtype could only hold as infinity."""
        return {name: record for name, record in self.manifest.tensors.items() if record.overflowed}

    @property
    def nonfinite(self) -> dict[str, TensorRecord]:
        """Tensors with sums that were NaN or infinite already in float32."""
        return {name: record for name, record in self.manifest.tensors.items() if record.nonfinite}


def describe(result: Result) -> list[str]:
    """A report for the user after a run, a line each; warnings begin with "warning"."""
    manifest = result.manifest
    total = manifest.sum
    lines = [
        f"{len(manifest.tensors)} tensors in {result.folder}, sum of all weights "
        + ("not finite" if isnan(total) else f"{total:.6f}")
        + f", computed by {manifest.backend}"
    ]
    lines += result.checked
    lines += manifest.notes
    if result.finished_before:
        lines.append(FINISHED_BEFORE)
    elif result.resumed:
        lines.append(f"{result.resumed} tensor(s) of the interrupted run were complete and were kept")
    if result.skipped:
        lines.append(
            f"{len(result.skipped)} buffer(s) left out, such as {result.skipped[0]}: they follow from the config"
        )
    for name, record in result.overflowed.items():
        lines.append(
            f"warning: {name}: {record.overflowed} finite value(s) left the range of {record.dtype} and became infinite"
        )
    for name, record in result.nonfinite.items():
        lines.append(f"warning: {name}: {record.nonfinite} value(s) were NaN or infinite before rounding")
    return lines
