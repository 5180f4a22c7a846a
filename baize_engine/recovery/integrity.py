"""The reference scripts' `check_integrity_naively`: the sum of all weights, and what it can honestly be compared with.

weight_diff.py compares with one constant, alpaca-7B's, whatever model it recovers; its copies have constants of their own,
or a file beside the diff. Here the file counts, where there is one; else the result is compared with the constants of models
of its shape. Missing a constant means something only to users who know that they have that model, so it is no error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path

from baize_engine.checkpoint.base import read_base
from baize_engine.checkpoint.hub import folder_of
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.names import EMBED, count_layers
from baize_engine.checkpoint.os_errors import is_file, reading
from baize_engine.errors import CheckpointError
from baize_engine.recovery.plan import WRONG_BASE
from baize_engine.recovery.published_sum import TOLERANCE, NaiveSum, naive_sums
from baize_engine.recovery.result import Result

LONGEST = 64  # bytes of a file that holds one number


@dataclass(frozen=True)
class Published:
    """The sum of a published finetune, and the layers and embedding rows and columns that it has."""

    model: str
    sum: float
    layers: int
    rows: int
    hidden: int


PUBLISHED = (  # as they stand in the scripts of each
    Published("alpaca-7b", 50637.1836, 32, 32001, 4096),  # stanford_alpaca, and copies that kept it
    Published("llama-7b-gist", 50547.9570, 32, 32001, 4096),  # gisting
    Published("llama-7b-pos_control", 50596.9219, 32, 32001, 4096),
    Published("llama-7b-neg_control", 50503.8789, 32, 32001, 4096),
    Published("landmark-attention-llama7b", 49798.7656, 32, 32002, 4096),  # its first release
    Published("zhixi-13b", 94052.2891, 40, 32000, 5120),  # KnowLM
)


@dataclass(frozen=True)
class Carried:
    """The sum that a diff's own folder states, and how close a result must come to it."""

    path: Path
    sum: float
    rtol: float

    @property
    def atol(self) -> float:
        return max(TOLERANCE, self.rtol * abs(self.sum))


# landmark-attention's, compared within 1e-2; AlpacaFarm's, by np.isclose with its 1e-5 of the sum (0.5 at 7B)
_FILES = {"checksum_psum.txt": 0.0, "model_sum.txt": 1e-5}


def carried_sum(path_diff: str | Path) -> Carried | None:
    """The sum that the diff's folder states for its result. CheckpointError where such a file does not hold one number."""
    for name, rtol in _FILES.items():
        path = folder_of(path_diff) / name
        if not is_file(path):
            continue
        with reading(path), path.open("rb") as file:
            content = file.read(LONGEST + 1)
        try:
            total = float(content.decode("ascii"))
        except ValueError:
            total = nan
        if len(content) > LONGEST or not isfinite(total):
            raise CheckpointError(f"{path} does not hold one finite number, wanted the sum of all weights")
        return Carried(path, total, rtol)
    return None


def check_naively(
    path_raw: str | Path, path_diff: str | Path, result: Result, carried: Carried | None
) -> tuple[bool, list[str]]:
    """Whether `result` has the sum that its diff's folder states (True where it states none), and a report, a line each."""
    base, diff = read_base(folder_of(path_raw)), read_index(folder_of(path_diff))
    sums = naive_sums(result.manifest.tensors, base, diff)
    lines = [f"naive sum of {result.folder}: {found}" for found in sums]
    if carried is not None:
        distance = min(found.distance(carried.sum) for found in sums)
        good = distance <= carried.atol
        verdict = "met" if good else f"missed by {distance:.4f}: {WRONG_BASE}"
        return good, [*lines, f"{carried.path} says {carried.sum} within {carried.atol:.2g}: {verdict}"]
    return True, [*lines, _verdict(sums, result)]


def _verdict(sums: Sequence[NaiveSum], result: Result) -> str:
    embed = result.manifest.tensors.get(EMBED)
    layers = count_layers(result.manifest.tensors)
    same_shape = [
        each
        for each in PUBLISHED
        if embed is not None and (each.layers, each.rows, each.hidden) == (layers, *embed.shape)
    ]
    for each in same_shape:
        if any(found.distance(each.sum) <= TOLERANCE for found in sums):
            return f"that is the sum published for {each.model}, {each.sum}"
    if same_shape:
        models = ", ".join(f"{each.sum} ({each.model})" for each in same_shape)
        return (
            f"warning: none of the sums published for models of this shape, {models}: the base or the diff is wrong if it "
            "should be one of them; every other finetune has its own sum (--expect_sum compares with one)"
        )
    return (
        "not compared: no published sum of a model of this shape is known (weight_diff.py's 50637.1836 is alpaca-7b's alone; "
        "--expect_sum compares with a sum that the authors published)"
    )
