"""The gate's cases of the products, at the shapes of 7B, 13B, 30B and 65B."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from compile_gate import GateCase, pdl_code

from baize_engine.kernels import product, settings
from baize_engine.kernels.norm import LANES
from baize_engine.kernels.quantized import BLOCK
from baize_engine.kernels.settings import ProductSettings
from baize_engine.model.share import SEGMENTS

# The matrices of a layer: (hidden, inner, heads); head_dim is 128.
LAYERS: dict[str, tuple[int, int, int]] = {
    "7b": (4096, 11008, 32), "13b": (5120, 13824, 40), "30b": (6656, 17920, 52), "65b": (8192, 22016, 64),
}  # fmt: skip
KINDS: dict[str, tuple[str, str, int]] = {
    "fp16": ("*fp16", "*fp16", 16), "bf16": ("*bf16", "*bf16", 16), "int8": ("*fp16", "*i8", 8), "int4": ("*fp16", "*u8", 4),
}  # fmt: skip
# The products of a model that several devices share, and how many devices.
SPLITS: dict[str, tuple[int, ...]] = {
    "qkv_rope_store": (2, 4, 8), "segment_sums o": (1, 2, 4, 8), "gate_up": (2, 4, 8), "segment_sums down": (1, 2, 4, 8),
    "head": (2, 4, 8),
}  # fmt: skip
# (op, kind, dependent, ranks) of 13B and one row that CI compiles.
IN_CI = {
    *((op, "fp16", False, 1) for op in ("qkv_rope_store", "gate_up", "linear_add o", "linear_add down", "head")),
    ("gate_up", "int4", False, 1), ("gate_up", "int4", True, 1),
    ("segment_sums down", "fp16", False, 2), ("segment_sums down", "int4", False, 2),
}  # fmt: skip


def product_case(
    size: str, op: str, kind: str, rows: int, dependent: bool, how: ProductSettings | None = None, name: str = "",
    vocabulary: int = 32000, ranks: int = 1,
) -> GateCase:  # fmt: skip
    """The case of `op` ("linear_add o" and "linear_add down" are two) at `size`, launched by the rule or as `how` says.

    ranks: over how many devices the matrix is split.
    """
    hidden, inner, heads = LAYERS[size]
    n, k = {
        "qkv_rope_store": (3 * hidden // ranks, hidden),
        "gate_up": (2 * inner // ranks, hidden),
        "linear_add o": (hidden, hidden),
        "linear_add down": (hidden, inner),
        "segment_sums o": (hidden, hidden // SEGMENTS),
        "segment_sums down": (hidden, inner // SEGMENTS),
        "head": (vocabulary // ranks, hidden),
        "linear": (vocabulary, hidden),
    }[op]
    function = op.split()[0]
    x, w, bits = KINDS[kind]
    how = how or settings.product(function, bits, rows)
    how.check(function, bits)
    norm = function in settings.WITH_NORM and how.fuse_norm
    rope, head = function == "qkv_rope_store", function == "head"
    pointers: dict[str, str | None] = {
        "x_ptr": x, "norm_ptr": x if norm else None, "w_ptr": w,
        "block_scale_ptr": "*i8" if bits == 4 else None, "scale_ptr": "*fp32" if bits <= 8 else None,
        "out_ptr": "*fp32" if function in ("head", "segment_sums") else x,
        "cos_ptr": "*fp32" if rope else None, "sin_ptr": "*fp32" if rope else None,
        "positions_ptr": "*i64" if rope else None, "slots_ptr": "*i64" if rope else None,
        "k_ptr": x if rope else None, "v_ptr": x if rope else None, "index_ptr": "*i32" if head else None,
    }  # fmt: skip
    constants: dict[str, Any] = {
        "N": n, "K": k, "SEGMENTS": SEGMENTS // ranks if function == "segment_sums" else 1, "BITS": bits, "BLOCK": BLOCK,
        "NORM": norm, "EPILOGUE": product.EPILOGUES[function], "HEADS": heads // ranks, "KV_HEADS": heads // ranks, "D": 128,
        "LANES": LANES, "PDL": pdl_code(how.trigger if dependent else None),
        "AHEAD": how.prefetched if norm or dependent else 0, "ASSEMBLY": True,
        "BLOCK_T": how.block_t(rows), "BLOCK_N": how.block_n, "BLOCK_K": how.block_k,
        **{name: None for name, type_ in pointers.items() if type_ is None},
    }  # fmt: skip
    signature = {name: type_ for name, type_ in pointers.items() if type_ is not None}
    return GateCase(
        name=f"{op} {size}{f' / {ranks}' if ranks > 1 else ''} {kind} x{rows}{' ' * bool(name)}{name}"
        f"{' pdl' if dependent else ''}",
        kernel=product._product_kernel,
        signature={**signature, "eps": "fp32", "T": "i32"},
        constexprs=constants,
        aligned=tuple(signature),
        num_warps=how.num_warps,
        num_stages=how.num_stages,
        wide_stores=False,  # T values a row of W: nothing beside the weights
        dot=True,
        warp_level=True,
        pdl=how.trigger if dependent else None,
        ci=((size, rows, name) == ("13b", 1, "") and (op, kind, dependent, ranks) in IN_CI)
        or (size, op, kind, rows, dependent, ranks, name) == ("13b", "gate_up", "fp16", 32, False, 1, ""),
    )


def launches(size: str) -> Iterator[tuple[str, int, bool]]:
    """(kind, rows, dependent) of 13B with every number of rows that has a tile of its own, as Hopper and as others run it; of
    the others less. 32 and 64 rows of int4 are one tile."""
    for kind in KINDS:
        for rows in (1, 16, 32, 64):
            for dependent in (False, True):
                if (kind, rows) != ("int4", 32) and (size == "13b" or (rows in (1, 64) and not dependent)):
                    yield kind, rows, dependent


def product_cases() -> list[GateCase]:
    """Whole matrices."""
    found = []
    for size in LAYERS:
        for kind, rows, dependent in launches(size):
            for op in ("qkv_rope_store", "gate_up", "linear_add o", "linear_add down", "head"):
                found.append(product_case(size, op, kind, rows, dependent))
    for kind in KINDS:
        found.append(product_case("13b", "linear", kind, 1, False))
        for rows in (1, 64):  # a finetune's vocabulary, which no tile divides
            found.append(product_case("13b", "head", kind, rows, True, name="of 32001", vocabulary=32001))
    return found


def split_cases() -> list[GateCase]:
    """Matrices of 13B and 65B that 2, 4 and 8 devices share; segments also where one device has all."""
    found = []
    for size in ("13b", "65b"):
        for kind, rows, dependent in launches(size):
            for op, counts in SPLITS.items():
                found += [product_case(size, op, kind, rows, dependent, ranks=ranks) for ranks in counts]
    for kind, rows, ranks in itertools.product(KINDS, (1, 64), SPLITS["head"]):  # of 32001 and rows of zeros
        found.append(product_case("13b", "head", kind, rows, True, name="of 32008", vocabulary=32008, ranks=ranks))
    return found
