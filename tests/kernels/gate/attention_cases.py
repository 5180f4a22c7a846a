"""The gate's cases of attention, decode and prefill, at the heads of 7B, 13B, 30B and 65B, and at a share of 13B's and 65B's on
each of 2, 4 and 8 devices."""

from __future__ import annotations

from compile_gate import GateCase, pdl_code

from baize_engine.kernels import attention, settings
from baize_engine.kernels.settings import AttentionSettings


def attention_case(
    op: str, heads: int, shared: int, kind: str, how: AttentionSettings, dependent: bool, name: str = ""
) -> GateCase:
    """The case of "decode", "join" or "prefill", `how` launched."""
    dim = 128
    trigger = (how.trigger if op != "prefill" else "early") if dependent else None
    common = {"D": dim, "PADDED_D": dim, "PDL": pdl_code(trigger)}
    paged = {"SHARED": shared, "BLOCK": 16}
    cache = {"q_ptr": f"*{kind}", "k_ptr": f"*{kind}", "v_ptr": f"*{kind}", "tables_ptr": "*i32"}
    if op == "decode":
        kernel, warps, stages = attention._attention_decode_kernel, how.num_warps, 3
        signature = {
            **cache, "lens_ptr": "*i32", "parts_ptr": "*fp32", "stats_ptr": "*fp32",
            "table_stride": "i32", "scale": "fp32", "splits": "i32",
        }  # fmt: skip
        constants = {
            **common, **paged, "KV_HEADS": heads // shared, "SPLIT": attention.SPLITS[2], "ROWS": max(16, shared),
            "TILE": how.tile, "FETCH_FIRST": how.fetch_first, "ASSEMBLY": True,
        }  # fmt: skip
    elif op == "join":
        kernel, warps, stages = attention._attention_join_kernel, 4, 3
        signature = {
            "parts_ptr": "*fp32", "stats_ptr": "*fp32", "lens_ptr": "*i32", "out_ptr": f"*{kind}", "splits": "i32",
        }  # fmt: skip
        constants = {**common, "HEADS": heads, "SPLIT": attention.SPLITS[2], "JOINED": attention.JOINED}
    else:
        tile = attention.prefill_tile(2)
        kernel, warps, stages = attention._attention_prefill_kernel, tile["num_warps"], tile["num_stages"]
        signature = {
            **cache, "starts_ptr": "*i32", "lens_ptr": "*i32", "out_ptr": f"*{kind}", "table_stride": "i32", "scale": "fp32",
        }  # fmt: skip
        constants = {**common, **paged, "HEADS": heads, "BLOCK_M": tile["BLOCK_M"], "TILE": tile["TILE"]}
    return GateCase(
        name=f"attention {op} {kind} {heads}/{heads // shared}{' ' * bool(name)}{name}{' pdl' if dependent else ''}",
        kernel=kernel,
        signature=signature,
        constexprs=constants,
        aligned=tuple(name for name in signature if name.endswith("_ptr")),
        num_warps=warps,
        num_stages=stages,
        wide_loads=op != "join",
        wide_stores=op == "decode",
        dot=op != "join",
        warp_level=op == "decode",
        pdl=trigger,
        reads_early=op == "decode" and how.fetch_first,
        ci=(heads, shared, kind, dependent, name) == (40, 1, "fp16", False, ""),
    )


def attention_cases() -> list[GateCase]:
    return [
        attention_case(op, heads, shared, kind, settings.attention(2), dependent)
        for op in ("decode", "join", "prefill")
        for heads, shared in (*((heads, 1) for heads in (5, 8, 10, 16, 20, 32, 40, 52, 64)), (64, 8))
        for kind in ("fp16", "bf16")
        for dependent in (False, True)
    ]
