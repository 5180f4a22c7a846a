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
    of the rank's segments of o and down lie side by side here, and a head has no rows beyond the vocabulary.
    """
    tied = config.tie_word_embeddings
    return {
        name: part_of(name, entries[names.EMBED if tied and name == names.HEAD else name], config, share)
        for name in wanted
    }


def part_of(name: str, entry: Entry, config: ModelConfig, share: Share) -> Entry:
    """The rank's part of one tensor, which is to become its weight `name`."""
    if name == names.HEAD:
        return rows_of(entry, *share.vocabulary(config))
    if len(entry.shape) == 1 or name == names.EMBED:
        return entry
    cut, whole = (columns_of, entry.shape[1]) if name.endswith(names.BY_COLUMNS) else (rows_of, entry.shape[0])
    width = whole // share.ranks
    return cut(entry, share.rank * width, (share.rank + 1) * width)


def targets(name: str, weight: Weight, share: Share | None) -> tuple[Weight, ...]:
    """The parts of `weight`, the weight `name`, that take equal parts of the columns of what is read: one for each segment."""
    if share is None or not name.endswith(names.BY_COLUMNS):
        return (weight,)
    rows = weight.shape[0] // share.segments
    return tuple(weight_rows(weight, number * rows, (number + 1) * rows) for number in range(share.segments))
