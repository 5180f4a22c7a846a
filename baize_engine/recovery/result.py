"""What a run of `recover` or `make_diff` made, and how to tell it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from pathlib import Path

from baize_engine.checkpoint.manifest import Manifest, TensorRecord


@dataclass(frozen=True)
class Result:
    """What a run made: the folder, its manifest, and what a user should hear of."""

    folder: Path
    manifest: Manifest
    skipped: tuple[str, ...]
    extra_rows: int
    resumed: int  # tensors that an earlier, killed run had finished
    checked: tuple[str, ...] = ()  # expectations that were met, a line each

    @property
    def overflowed(self) -> dict[str, TensorRecord]:
        """Tensors with finite values that the result's dtype could only hold as infinity."""
        return {name: record for name, record in self.manifest.tensors.items() if record.overflowed}

    @property
    def nonfinite(self) -> dict[str, TensorRecord]:
        """Tensors with sums that were NaN or infinite already in float32."""
        return {name: record for name, record in self.manifest.tensors.items() if record.nonfinite}


def describe(result: Result) -> list[str]:
    """What to tell the user after a run, a line each."""
    manifest = result.manifest
    total = manifest.sum
    lines = [
        f"{len(manifest.tensors)} tensors in {result.folder}, sum of all weights "
        + ("not finite" if isnan(total) else f"{total:.6f}")
        + f", computed by {manifest.backend}"
    ]
    lines += result.checked
    if result.extra_rows:
        lines.append(f"{result.extra_rows} vocabulary row(s) not in the base met the mean row of the base")
    if result.resumed:
        lines.append(f"{result.resumed} tensor(s) of the interrupted run were whole and were not redone")
    if result.skipped:
        lines.append(f"{len(result.skipped)} rotary buffer(s) left out: they follow from the config")
    for name, record in result.overflowed.items():
        lines.append(
            f"warning: {name}: {record.overflowed} finite value(s) left the range of {record.dtype} and became infinite"
        )
    for name, record in result.nonfinite.items():
        lines.append(f"warning: {name}: {record.nonfinite} value(s) were NaN or infinite before rounding")
    return lines
