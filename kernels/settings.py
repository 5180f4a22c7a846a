"""How kernels are launched: tiles, warps, prefetching. No setting changes a bit of a result.

The rules here are for every GPU; a card that was tuned has its own table (kernels/tuned.py). `*_choices` are the values that
the tuner tries (benchmarks/tune_kernels.py): each compiles for sm_80, sm_89 and sm_90 without spills (the compile gate).
Pure: imports neither torch nor Triton.

The order of a sum is not a setting: 16 columns of a tensor instruction, in order; for int4, tiles of INT4_BLOCK_K, low codes
before high ones; BEST_BLOCK logits, of which the head reports the greatest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

# When the next kernel on the stream may start, on GPUs with dependent launch (sm_90 and later). It waits for this one to end
# before it reads any kernel's results, but what it does before that overlaps this kernel.
# first: at once, before this kernel itself waits; early: when it has waited; late: after its loop over K.
TRIGGERS = ("first", "early", "late")
# The trigger of a norm before a product, by the product's: what the product fetches ahead, it fetches while the norm runs, but
# not already while the product before the norm runs, which is what "late" avoids.
NORM_TRIGGERS = {"early": "early", "late": "first"}
BITS = (32, 16, 8, 4)
WITH_NORM = ("qkv_rope_store", "gate_up", "head")  # products that begin with a norm
PRODUCTS = (*WITH_NORM, "linear_add", "segment_sums", "linear")
BEST_BLOCK = 32  # logits of which `head` leaves the greatest for `sample`
INT4_BLOCK_K = 256
FUSED_NORM_ROWS = 8  # up to so many rows every program normalises them itself; for more, a separate kernel is cheaper
MAX_ROWS = 64  # rows of x that one program of a product holds
TUNED_ROWS = (1, 2, 4, 8, 16, 32, 64)


def _wanted(name: str, found: Any, wanted: Sequence[Any]) -> None:
    """Raise ValueError unless `found`, the value of `name`, is one of `wanted`, and of its type."""
    if type(found) not in {type(value) for value in wanted} or found not in wanted:
        raise ValueError(f"{name} is {found!r}, wanted one of {', '.join(map(repr, wanted))}")


@dataclass(frozen=True)
class ProductSettings:
    """A product y = x W^T of a decode step (kernels/product.py)."""

    block_n: int  # rows of W of a program
    block_k: int  # columns of W in a tile
    num_warps: int
    num_stages: int
    max_block_t: int = MAX_ROWS  # rows of x in a program, at most
    prefetched: int = 5  # tiles of W prefetched before the first product, if there is something to do meanwhile
    fuse_norm: bool = True  # whether each program normalises its rows itself, instead of a kernel before it
    trigger: str = "early"

    def __post_init__(self) -> None:
        _wanted("block_n", self.block_n, (16, 32, 64))
        _wanted("block_k", self.block_k, (32, 64, 128, 256))
        _wanted("num_warps", self.num_warps, (1, 2, 4, 8))
        _wanted("num_stages", self.num_stages, tuple(range(1, 9)))
        _wanted("max_block_t", self.max_block_t, (8, 16, 32, 64))
        _wanted("prefetched", self.prefetched, tuple(range(9)))
        _wanted("fuse_norm", self.fuse_norm, (False, True))
        _wanted("trigger", self.trigger, TRIGGERS[1:])
        if self.block_n >= 64 and self.num_warps >= 4:
            raise ValueError(
                f"block_n {self.block_n} with num_warps {self.num_warps} is Hopper's wgmma, whose sums may differ; "
                "wanted block_n 16 or 32, or num_warps 1 or 2"
            )

    def check(self, op: str, bits: int) -> None:
        """Raise ValueError if these settings would change the result of `op` for weights of `bits`."""
        _wanted("op", op, PRODUCTS)
        _wanted("bits", bits, BITS)
        if op == "head" and self.block_n != BEST_BLOCK:
            raise ValueError(f"block_n of head is {self.block_n}, wanted {BEST_BLOCK}")
        if bits == 4 and self.block_k != INT4_BLOCK_K:
            raise ValueError(f"block_k of int4 is {self.block_k}, wanted {INT4_BLOCK_K}, whose order of sums is one")

    def block_t(self, rows: int) -> int:
        """Rows of x in a program, for `rows` in all: a power of two, at least 8."""
        return min(self.max_block_t, max(8, 1 << (rows - 1).bit_length()))


@dataclass(frozen=True)
class AttentionSettings:
    """Attention of a decode step and the join of its parts (kernels/attention.py)."""

    tile: int  # tokens whose keys are loaded at once: half a split, or all of it
    num_warps: int = 4
    fetch_first: bool = False  # whether keys and values are prefetched before the kernel waits
    trigger: str = "early"

    def __post_init__(self) -> None:
        _wanted("tile", self.tile, (64, 128))
        _wanted("num_warps", self.num_warps, (2, 4, 8))
        _wanted("fetch_first", self.fetch_first, (False, True))
        _wanted("trigger", self.trigger, TRIGGERS[:2])


@dataclass(frozen=True)
class SampleSettings:
    """The choice of a token (kernels/sample.py)."""

    num_warps: int = 16
    radix: int = 16  # candidate thresholds in one pass over all logits

    def __post_init__(self) -> None:
        _wanted("num_warps", self.num_warps, (16, 32))
        _wanted("radix", self.radix, (2, 16))


Settings = ProductSettings | AttentionSettings | SampleSettings
KINDS: dict[str, type] = {
    **dict.fromkeys(PRODUCTS, ProductSettings), "attention": AttentionSettings, "sample": SampleSettings,
}  # fmt: skip


def from_dict(op: str, bits: int, values: Mapping[str, Any]) -> Any:
    """The settings of `op` in `values`, which must give all. ValueError names what is unknown, missing or out of range."""
    _wanted("op", op, tuple(KINDS))
    kind = KINDS[op]
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{op} has no setting {unknown[0]!r}, wanted {', '.join(sorted(known))}")
    if missing := sorted(known - set(values)):
        raise ValueError(f"{op} lacks the setting {missing[0]!r}")
    made = kind(**values)
    if isinstance(made, ProductSettings):
        made.check(op, bits)
    return made


def _may_fuse(op: str, bits: int) -> bool:
    """Whether a product may compute the norm itself. The head of int8 would spill 8 bytes with 30B's 6656 columns on sm_90."""
    return op in WITH_NORM and (op, bits) != ("head", 8)


@cache
def product(op: str, bits: int, rows: int) -> ProductSettings:
    """The rule for a product of `rows` rows of x with a weight of `bits`.

    From 17 rows on, twice as many rows of W share the traffic of x from the L2 cache to the multiprocessors, which at 64 rows
    of 13B would otherwise be twice that of the weights.
    """
    _wanted("op", op, PRODUCTS)
    fused = _may_fuse(op, bits) and rows <= FUSED_NORM_ROWS
    most = 32 if bits == 4 else MAX_ROWS  # dequantising needs the registers that 64 rows would take
    wide = {4: INT4_BLOCK_K, 8: 256, 16: 128, 32: 64}[bits]
    if rows <= 16:
        return ProductSettings(32, wide, 2, 5, most, fuse_norm=fused)
    if bits in (8, 16) and op != "head":
        return ProductSettings(64, 64, 2, 5, most, fuse_norm=fused)
    return ProductSettings(32, wide, 4, 3, most, fuse_norm=fused)


@cache
def attention(itemsize: int) -> AttentionSettings:
    """The rule for attention over a cache of values of `itemsize` bytes; float32 takes twice the registers."""
    return AttentionSettings(64, num_warps=4 if itemsize == 2 else 8)


@cache
def sample() -> SampleSettings:
    """The rule for choosing a token."""
    return SampleSettings()


# What the tuner tries: for each aspect in turn, the alternatives to the rule. It keeps the best before it goes on.

Choices = Sequence[tuple[str, Sequence[Mapping[str, Any]]]]


def _tile(block_n: int, block_k: int, num_warps: int, num_stages: int, **more: int) -> dict[str, Any]:
    return {"block_n": block_n, "block_k": block_k, "num_warps": num_warps, "num_stages": num_stages, **more}


def product_choices(op: str, bits: int, rows: int) -> Choices:
    """Choices for a product: tiles first, because the rest depends on them, then norm, trigger and prefetching."""
    tiles = {
        (16, False): [_tile(16, 256, 1, 4), _tile(32, 64, 2, 8), _tile(32, 128, 4, 5), _tile(64, 64, 2, 5)],
        (8, False): [_tile(16, 256, 1, 6), _tile(32, 128, 2, 6), _tile(32, 256, 4, 5), _tile(64, 128, 2, 5)],
        (4, False): [_tile(16, 256, 1, 6), _tile(32, 256, 4, 5), _tile(64, 256, 2, 4)],
        (16, True): [
            _tile(32, 64, 4, 5), _tile(32, 128, 4, 3), _tile(32, 64, 2, 6), _tile(64, 64, 2, 5, max_block_t=32),
            _tile(32, 128, 4, 4, max_block_t=32),
        ],
        (8, True): [
            _tile(32, 64, 4, 5), _tile(32, 128, 4, 3), _tile(32, 64, 2, 6), _tile(64, 64, 2, 5, max_block_t=32),
            _tile(32, 128, 4, 4, max_block_t=32),
        ],
        (4, True): [_tile(32, 256, 4, 4), _tile(32, 256, 2, 4), _tile(32, 256, 4, 4, max_block_t=16)],
    }.get((bits, rows > 16), [])  # fmt: skip
    rule = product(op, bits, rows)
    tiles = [
        tile for tile in tiles if replace(rule, **tile) != rule and (op != "head" or tile["block_n"] == BEST_BLOCK)
    ]
    choices: list[tuple[str, Sequence[Mapping[str, Any]]]] = [("tile", tiles)] if tiles else []
    if rule.fuse_norm:  # otherwise fusing would normalise too many rows in each program, or spill
        choices.append(("norm", [{"fuse_norm": False}]))
    choices.append(("trigger", [{"trigger": "late"}]))
    choices.append(("prefetched", [{"prefetched": 0}, {"prefetched": 2}]))
    return choices


def attention_choices() -> Choices:
    """Choices for attention over 16-bit caches."""
    return [
        ("tile", [{"tile": 128}, {"tile": 128, "num_warps": 8}, {"tile": 64, "num_warps": 8}]),
        ("fetch", [{"fetch_first": True}]),
        ("trigger", [{"trigger": "first"}]),
    ]


def sample_choices() -> Choices:
    """Choices for sampling with top_k and top_p."""
    return [
        ("warps", [{"num_warps": 32, "radix": 2}]),  # other pairs spill with some vocabulary on some GPU
    ]
