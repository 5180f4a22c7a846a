"""The gate's cases: every kernel at published shapes. Products, attention and the sampler have files of their own."""

from __future__ import annotations

from attention_cases import attention_cases
from compile_gate import GateCase, pdl_code
from product_cases import product_cases, split_cases
from sample_cases import sample_cases

from baize_engine.kernels import dequantize, diff_add, norm, rope, silu, sums
from baize_engine.kernels.diff_add import BFLOAT16, FLOAT16, FLOAT32
from baize_engine.kernels.quantized import BLOCK


def cases() -> list[GateCase]:
    """All cases of all kernels."""
    return [
        *attention_cases(), *dequantize_cases(), *diff_add_cases(), *norm_cases(), *product_cases(), *rope_cases(),
        *sample_cases(), *silu_cases(), *split_cases(), *sums_cases(),
    ]  # fmt: skip


def dequantize_cases() -> list[GateCase]:
    return [
        GateCase(
            name=f"dequantize {bits} bits {kind} {columns}{' pdl' if trigger else ''}",
            kernel=dequantize._dequantize_kernel,
            signature={
                "values_ptr": {8: "*i8", 4: "*u8"}[bits], **({"block_scales_ptr": "*i8"} if bits == 4 else {}),
                "scales_ptr": "*fp32", "out_ptr": f"*{kind}", "N": "i32",
            },
            constexprs={
                "K": columns, "BITS": bits, "BLOCK": BLOCK, "ROWS": dequantize.ROWS, "COLUMNS": dequantize.COLUMNS,
                "ASSEMBLY": True, "PDL": pdl_code(trigger),
                **({} if bits == 4 else {"block_scales_ptr": None}),
            },
            aligned=("values_ptr", *(("block_scales_ptr",) if bits == 4 else ()), "scales_ptr", "out_ptr"),
            pdl=trigger,
            ci=(kind, columns, trigger) == ("fp16", 5120, None),
        )
        for bits in (8, 4)
        for kind in ("fp16", "bf16")
        for columns in (640, 1024, 1728, 2752, 4096, 5120, 8192, 11008, 13824, 22016)
        for trigger in (None, "early")
    ]  # fmt: skip


def diff_add_case(base: int, diff: int, out: int, masked: bool, ci: bool) -> GateCase:
    inputs = {FLOAT32: "*fp32", FLOAT16: "*fp16", BFLOAT16: "*i16"}
    names = {FLOAT32: "fp32", FLOAT16: "fp16", BFLOAT16: "bf16"}
    return GateCase(
        name=f"diff_add {names[base]}+{names[diff]}->{names[out]}{' tail' if masked else ''}",
        kernel=diff_add._diff_add_kernel,
        signature={
            "base_ptr": inputs[base], "diff_ptr": inputs[diff], "out_ptr": "*fp32" if out == FLOAT32 else "*i16",
            "sums_ptr": "*fp64", "overflowed_ptr": "*i32", "nonfinite_ptr": "*i32", "first_chunk": "i32", "count": "i32",
        },
        constexprs={
            "BASE": base, "DIFF": diff, "OUT": out, "SUBTRACT": False, "MASKED": masked,
            "CHUNK": diff_add.CHUNK, "LANES": diff_add.LANES,
        },
        aligned=("base_ptr", "diff_ptr", "out_ptr"),
        wide_loads=not masked,  # the tail is at most one chunk of a tensor
        wide_stores=not masked,
        ci=ci,
    )  # fmt: skip


def diff_add_cases() -> list[GateCase]:
    return [
        diff_add_case(base, diff, out, masked, ci=(base, diff, out, masked) == (FLOAT16, FLOAT32, FLOAT16, False))
        for base in (FLOAT32, FLOAT16, BFLOAT16)
        for diff in (FLOAT32, FLOAT16, BFLOAT16)
        for out in (FLOAT32, FLOAT16, BFLOAT16)
        for masked in (False, True)
    ]


def norm_case(hidden: int, kind: str, trigger: str | None, ci: bool) -> GateCase:
    return GateCase(
        name=f"rms_norm {kind} {hidden}{f' pdl {trigger}' if trigger else ''}",
        kernel=norm._rms_norm_kernel,
        signature={"x_ptr": f"*{kind}", "weight_ptr": f"*{kind}", "out_ptr": f"*{kind}", "eps": "fp32"},
        constexprs={"H": hidden, "LANES": norm.LANES, "PDL": pdl_code(trigger)},
        aligned=("x_ptr", "weight_ptr", "out_ptr"),
        num_warps=norm.NORM_WARPS,
        pdl=trigger,
        ci=ci,
    )


def norm_cases() -> list[GateCase]:
    return [
        norm_case(hidden, kind, trigger, ci=(hidden, kind) == (5120, "fp16"))
        for hidden in (4096, 5120, 6656, 8192)
        for kind in ("fp16", "bf16")
        for trigger in (None, "first", "early")
    ]


def rope_case(heads: int, kind: str, trigger: str | None) -> GateCase:
    names = ("parts_ptr", "cos_ptr", "sin_ptr", "positions_ptr", "slots_ptr", "k_ptr", "v_ptr", "q_ptr")
    types = (f"*{kind}", "*fp32", "*fp32", "*i64", "*i64", *(f"*{kind}",) * 3)
    return GateCase(
        name=f"rope_store {kind} {heads} heads{' pdl' if trigger else ''}",
        kernel=rope._rope_store_kernel,
        signature=dict(zip(names, types, strict=True)),
        constexprs={"HEADS": heads, "KV_HEADS": heads, "D": 128, "PAIRS": rope.PAIRS, "PDL": pdl_code(trigger)},
        aligned=names,
        wide_loads=False,  # a thread's four pairs: 8 bytes of each half
        wide_stores=False,
        pdl=trigger,
        ci=(heads, kind, trigger) == (40, "fp16", None),
    )


def rope_cases() -> list[GateCase]:
    return [
        rope_case(heads, kind, trigger)
        for heads in (5, 8, 10, 16, 20, 32, 40, 64)
        for kind in ("fp16", "bf16")
        for trigger in (None, "early")
    ]


def silu_cases() -> list[GateCase]:
    return [
        GateCase(
            name=f"silu_mul {kind} {inner}{' pdl' if trigger else ''}",
            kernel=silu._silu_mul_kernel,
            signature={"parts_ptr": f"*{kind}", "out_ptr": f"*{kind}"},
            constexprs={"INNER": inner, "BLOCK": silu.BLOCK, "PDL": pdl_code(trigger)},
            aligned=("parts_ptr", "out_ptr"),
            pdl=trigger,
            ci=(kind, inner, trigger) == ("fp16", 13824, None),
        )
        for inner in (1728, 2752, 3456, 5504, 6912, 11008, 13824, 17920, 22016)
        for kind in ("fp16", "bf16")
        for trigger in (None, "early")
    ]


def sums_case(hidden: int, parts: int, kind: str, trigger: str | None) -> GateCase:
    """Of `kind` "fp32" the tree alone, else added to what is there."""
    return GateCase(
        name=f"sums of {parts} {kind} {hidden}{' pdl' if trigger else ''}",
        kernel=sums._tree_kernel,
        signature={"sums_ptr": "*fp32", "out_ptr": f"*{kind}", "T": "i32"},
        constexprs={"N": hidden, "PARTS": parts, "ADD": kind != "fp32", "BLOCK": sums.BLOCK, "PDL": pdl_code(trigger)},
        aligned=("sums_ptr", "out_ptr"),
        pdl=trigger,
        ci=(hidden, parts, kind, trigger) == (5120, 8, "fp16", None),
    )


def sums_cases() -> list[GateCase]:
    return [
        sums_case(hidden, parts, kind, trigger)
        for hidden in (5120, 8192)
        for parts in (1, 2, 4, 8)
        for kind in ("fp16", "bf16", "fp32")
        for trigger in (None, "early")
        if (kind, parts) != ("fp32", 1)  # a product writes it itself
    ]
