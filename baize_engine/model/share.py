"""Share: which part of a model a rank of a tensor-parallel run holds, and how large that part is.

Rows of q, k, v, gate, up and the output head are split: by heads, by intermediate columns, by token ids. Columns of o and down
are split, into SEGMENTS parts whatever the number of ranks, so that sums do not depend on it. Embedding and norms are whole on
every rank. Where SEGMENTS does not divide the intermediate columns or the vocabulary, the last parts are filled up with zeros,
which change no sum. Arithmetic only: knows no files and no other rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

from baize_engine.errors import ConfigError
from baize_engine.model.config import OLD_INT4, ModelConfig, quantization_config

SEGMENTS = 8  # parts of a product's columns whose sums are added in a fixed tree, on whichever ranks they were made
RANKS = tuple(count for count in range(1, SEGMENTS + 1) if SEGMENTS % count == 0)  # numbers of ranks: 1, 2, 4, 8


@dataclass(frozen=True)
class Share:
    """The part of rank `rank` of `ranks`. A single rank holds the whole model, in the form that any number of ranks compute."""

    rank: int = 0
    ranks: int = 1

    @property
    def segments(self) -> int:
        """Parts of the columns of o and down that this rank holds, and of the rows of other matrices."""
        return SEGMENTS // self.ranks

    def units(self, part: ModelConfig) -> int:
        """Parts of q, k and v that are computed apart where a library computes them: any number of ranks has the same parts.

        part: the sizes of this rank's part (`config`).
        """
        return gcd(self.segments, part.num_kv_heads)

    def head_rows(self, config: ModelConfig) -> int:
        """Rows of this rank's part of the output head; the last rank's may include rows beyond the vocabulary, of zeros."""
        return self._width(config.vocab_size)

    def vocabulary(self, config: ModelConfig) -> tuple[int, int]:
        """The first token id of this rank's part of the output head, and the one after its last."""
        return self._range(config.vocab_size)

    def intermediate(self, config: ModelConfig) -> tuple[int, int]:
        """The first intermediate column of this rank, and the one after its last; others that it has are zeros."""
        return self._range(config.intermediate_size)

    def _width(self, whole: int) -> int:
        """Of this rank's part of `whole` rows or columns, filled up to SEGMENTS equal parts."""
        return self.segments * -(-whole // SEGMENTS)

    def _range(self, whole: int) -> tuple[int, int]:
        width = self._width(whole)
        return min(self.rank * width, whole), min((self.rank + 1) * width, whole)

    def config(self, config: ModelConfig) -> ModelConfig:
        """The sizes of this rank's part of a model of `config`: heads and intermediate columns; the rest is whole."""
        return replace(
            config,
            num_heads=config.num_heads // self.ranks,
            num_kv_heads=config.num_kv_heads // self.ranks,
            intermediate_size=self._width(config.intermediate_size),
        )

    def check(self, config: ModelConfig) -> None:
        """ConfigError, with what would do, unless the model's sizes can be split over this number of ranks."""
        widths = {"num_attention_heads * head_dim": config.num_heads * config.head_dim}
        group = 1  # columns of a stored matrix that share a scale, and must not be parted
        if config.quantization == "int4":
            group = int((quantization_config("int4") if config.held == "int4" else OLD_INT4)["group_size"])
            widths["intermediate_size"] = config.intermediate_size  # other forms are filled up with zeros
        for name, width in widths.items():
            if width % (SEGMENTS * group):
                stored = f" of whole groups of {group}, as int4 is stored" if group > 1 else ""
                raise ConfigError(
                    f"{name} is {width}, and tensor parallelism sums it in {SEGMENTS} parts{stored}: wanted a multiple of "
                    f"{SEGMENTS * group}"
                )
        if problem := self._problem(config):
            fitting = [str(count) for count in RANKS if not Share(0, count)._problem(config)]
            raise ConfigError(f"{problem} cannot be split over {self.ranks} ranks: wanted {', '.join(fitting)}")

    def _problem(self, config: ModelConfig) -> str | None:
        """What as many ranks cannot have whole heads of, or each a part of; None if they can."""
        if self.ranks not in RANKS:
            return f"{SEGMENTS} segments"
        if config.num_kv_heads % self.ranks:
            return f"{config.num_heads} heads with {config.num_kv_heads} key heads"
        for name in ("intermediate_size", "vocab_size"):
            whole: int = getattr(config, name)
            if (self.ranks - 1) * self._width(whole) >= whole:
                return f"{name} {whole}"
        return None
