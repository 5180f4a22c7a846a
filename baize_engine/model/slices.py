"""Which part of each published tensor a rank of a tensor-parallel run reads, and where in its weights that goes.

Knows no numbers: `weight_loader.py` and `from_diff.py` read, convert and quantise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from baize_engine.checkpoint.entry import Entry, columns_of, rows_of
from baize_engine.kernels.quantized import Weight
from baize_engine.kernels.quantized import rows as weight_rows
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.share import Share


def slices(entries: Mapping[str, Entry], wanted: Iterable[str], config: ModelConfig, share: Share) -> dict[str, Entry]:
    """{name: the rank's part of it in the files} of each of `wanted`, some of `names.shapes(config, share)`.

    `entries`: the whole tensors, of the shapes of `names.shapes(config)`; a tied head is cut from the embedding. The columns
    of the rank's segments of o and down lie side by side here, and there are no rows or columns of padding.
    """
    tied = config.tie_word_embeddings
    return {
        name: part_of(name, entries[names.EMBED if tied and name == names.HEAD else name], config, share)
        for name in wanted
    }


def part_of(name: str, entry: Entry, config: ModelConfig, share: Share) -> Entry:
    """The rank's part of one tensor, which is to become its weight `name`."""
    if len(entry.shape) == 1 or name == names.EMBED:
        return entry
    if name.endswith(names.BY_COLUMNS):
        return columns_of(entry, *range_of(name, entry.shape[1], config, share))
    return rows_of(entry, *range_of(name, entry.shape[0], config, share))


def range_of(name: str, whole: int, config: ModelConfig, share: Share) -> tuple[int, int]:
    """The rank's part of the `whole` rows of the matrix `name`, or of its columns where those are split: begin and end."""
    if name == names.HEAD:
        return share.vocabulary(config)
    if name.endswith(names.INTERMEDIATE):
        return share.intermediate(config)
    width = whole // share.ranks
    return share.rank * width, (share.rank + 1) * width


def padding(name: str, config: ModelConfig, share: Share | None) -> int:
    """Rows of zeros that follow those of the published matrix `name` in the rank's weight, or columns where those are split."""
    if share is None:
        return 0
    if name == names.HEAD:
        begin, end = share.vocabulary(config)
        return share.head_rows(config) - (end - begin)
    if name.endswith(names.INTERMEDIATE):
        begin, end = share.intermediate(config)
        return share.config(config).intermediate_size - (end - begin)
    return 0


def targets(name: str, weight: Weight, share: Share | None) -> tuple[Weight, ...]:
    """The parts of `weight`, the weight `name`, that take equal parts of the columns that are read, and of their padding: one
    for each segment."""
    if share is None or not name.endswith(names.BY_COLUMNS):
        return (weight,)
    rows = weight.shape[0] // share.segments
    return tuple(weight_rows(weight, number * rows, (number + 1) * rows) for number in range(share.segments))
