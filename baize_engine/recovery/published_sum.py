"""The naive sum that weight_diff.py checks: what it is taken over, and how close ours must come.

The scripts of 2023 (alpaca's and its many copies) add up `state_dict[key].sum()` over a float32 model and compare the sum with
a constant, within 1e-2. Two things decide whether that can be met. Until transformers 4.31 the state dict held a rotary buffer
for each layer, `inv_freq`, which recovery does not write: 32 of them add 238.72 at 7B. And the running sum is a float32: near
50637 it moves in steps of 0.0039, so that some 300 additions leave it further from the exact sum than 1e-2. So we form two
sums, with and without the buffers, each of them exactly and in the scripts' own steps.

`check_integrity_naively` of weight_diff.py compares with one constant, alpaca-7B's, whatever model it recovers; its copies have
constants of their own, or a file beside the diff. Here the file counts, where there is one; else the result is compared with
the constants of models of its shape. Missing a constant means something only to users who know that they have that model, so
it is no error.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path

from baize_engine.checkpoint import names
from baize_engine.checkpoint.base import Base, Index, read_base
from baize_engine.checkpoint.dtypes import FLOATS
from baize_engine.checkpoint.entry import Entry
from baize_engine.checkpoint.hub import folder_of
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.manifest import TensorRecord
from baize_engine.checkpoint.names import INV_FREQ
from baize_engine.checkpoint.os_errors import is_file, reading
from baize_engine.errors import CheckpointError
from baize_engine.recovery.plan import WRONG_BASE
from baize_engine.recovery.result import Result
from baize_engine.recovery.widened import floats
from baize_engine.recovery.wrapped_names import unwrapped

LONGEST = 64  # bytes of a file that holds one number
TOLERANCE = 1e-2  # the scripts' own, absolute
# The order of a state dict in transformers 4.28: it decides the roundings of the running sum.
_ORDER = (
    *(part + names.WEIGHT for part in (names.Q, names.K, names.V, names.O)),
    f"self_attn{INV_FREQ}",
    *(part + names.WEIGHT for part in (names.GATE, names.DOWN, names.UP, names.ATTENTION_NORM, names.MLP_NORM)),
)


@dataclass(frozen=True)
class NaiveSum:
    """A sum over all tensors: exact (float64), and as a float32 that grows tensor by tensor."""

    what: str
    exact: float
    running: float

    def distance(self, published: float) -> float:
        """How far a published sum is from the nearer of the two; NaN where the weights have no finite sum."""
        return min(abs(self.exact - published), abs(self.running - published))

    def __str__(self) -> str:
        return f"{self.exact:.4f} ({self.running:.4f} in float32 steps) {self.what}"


def naive_sums(records: Mapping[str, TensorRecord], base: Base, other: Index) -> list[NaiveSum]:
    """The sums of a result without and with its rotary buffers. NaN where a tensor's sum is not finite.

    Errors as for `buffer_sums`.
    """
    buffers = buffer_sums(base, other, records)
    weights = {name: float("nan") if record.sum is None else record.sum for name, record in records.items()}
    return [_sum("over the weights", weights), _sum(f"with {len(buffers)} rotary buffers", {**weights, **buffers})]


def buffer_sums(base: Base, other: Index, tensors: Collection[str]) -> dict[str, float]:
    """For each layer of a result with these `tensors`, the sum of the rotary buffer that old versions of transformers held.

    That is the base's buffer plus the diff's, as their files have them, added in float32; for a base without them, written by
    a newer converter, the buffer follows from its config. CheckpointError where a file's buffer is not half a head of floats.
    """
    size, theta = int(base.config["head_dim"]), base.config["rope_theta"]
    own = [_float32(1.0 / theta ** (even / size)) for even in range(0, size, 2)]
    sums = {}
    bases, others = (unwrapped(index.entries, str(index.folder)) for index in (base.index, other))
    for name in (f"{names.LAYER}{number}.self_attn{INV_FREQ}" for number in range(names.count_layers(tensors))):
        left = _values(bases[name], len(own)) if name in bases else own
        right = _values(others[name], len(own)) if name in others else [0.0] * len(own)
        sums[name] = sum(_float32(a + b) for a, b in zip(left, right, strict=True))
    return sums


def _values(entry: Entry, count: int) -> list[float]:
    if entry.shape != (count,) or entry.dtype not in FLOATS:
        raise CheckpointError(
            f"{entry.path}: {entry.name} is {entry.dtype} {list(entry.shape)}, wanted floats of shape [{count}] to sum"
        )
    return floats(entry, count).tolist()


def _sum(what: str, sums: Mapping[str, float]) -> NaiveSum:
    exact, running = 0.0, 0.0
    for name in sorted(sums):
        exact += sums[name]
    for name in sorted(sums, key=_place):
        running = _float32(running + _float32(sums[name]))
    return NaiveSum(what, exact, running)


def _place(name: str) -> tuple[int, int, int, str]:
    """The place of `name` in the state dict: the embedding, the layers, the last norm, the head."""
    parts = name.split(".", 3)
    if len(parts) == 4 and parts[:2] == ["model", "layers"] and parts[2].isdigit():
        return 1, int(parts[2]), _ORDER.index(parts[3]) if parts[3] in _ORDER else len(_ORDER), name
    return {names.EMBED: 0, names.NORM: 2}.get(name, 3), 0, 0, name


def _float32(value: float) -> float:
    """`value` rounded to float32; infinite beyond its range."""
    try:
        (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
    return float(rounded)


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
class StatedSum:
    """The sum that a diff's own folder states, and how close a result must come to it."""

    path: Path
    sum: float
    rtol: float

    @property
    def atol(self) -> float:
        return max(TOLERANCE, self.rtol * abs(self.sum))


# landmark-attention's, compared within 1e-2; AlpacaFarm's, by np.isclose with its 1e-5 of the sum (0.5 at 7B)
_FILES = {"checksum_psum.txt": 0.0, "model_sum.txt": 1e-5}


def stated_sum(path_diff: str | Path) -> StatedSum | None:
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
        return StatedSum(path, total, rtol)
    return None


class NaiveCheck:
    """`check_integrity_naively` of one result. Made before the long work, so that a broken file is told early."""

    def __init__(self, path_raw: str | Path, path_diff: str | Path) -> None:
        self._path_raw, self._path_diff, self._stated = path_raw, path_diff, stated_sum(path_diff)

    def compare(self, result: Result) -> tuple[bool, list[str]]:
        """Whether it has the sum that its diff's folder states (True where it states none), and a report, a line each."""
        base, diff = read_base(folder_of(self._path_raw)), read_index(folder_of(self._path_diff))
        sums = naive_sums(result.manifest.tensors, base, diff)
        lines = [f"naive sum of {result.folder}: {found}" for found in sums]
        if (stated := self._stated) is None:
            return True, [*lines, _verdict(sums, result)]
        distance = min(found.distance(stated.sum) for found in sums)
        good = distance <= stated.atol
        verdict = "met" if good else f"missed by {distance:.4f}: {WRONG_BASE}"
        return good, [*lines, f"{stated.path} says {stated.sum} within {stated.atol:.2g}: {verdict}"]


def _verdict(sums: Sequence[NaiveSum], result: Result) -> str:
    embed = result.manifest.tensors.get(names.EMBED)
    layers = names.count_layers(result.manifest.tensors)
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
            f"warning: none of the sums published for models of this shape, {models}. If it should be one of these models, the "
            "base or the diff is wrong; any other finetune has its own sum (--expect_sum compares with one)"
        )
    return (
        "not compared: no published sum of a model of this shape is known (weight_diff.py's 50637.1836 is that of "
        "alpaca-7b alone; --expect_sum compares with a sum that the authors published)"
    )
