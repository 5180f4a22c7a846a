"""The gate's cases of the sampler, and of what else begins and ends a step: embed, advance."""

from __future__ import annotations

from typing import Any

import triton
from compile_gate import GateCase, pdl_code

from baize_engine.kernels import sample, settings
from baize_engine.kernels.reference import BEST_BLOCK
from baize_engine.kernels.settings import SampleSettings

SAMPLING = {
    "logits_ptr": "*fp32", "best_ptr": "*i32", "picked_ptr": "*i32", "out_ptr": "*i64",
    **dict.fromkeys(("temperature_ptr", "top_p_ptr", "min_p_ptr"), "*fp32"),
    **dict.fromkeys(("top_k_ptr", "seed_ptr", "index_ptr"), "*i64"), "position_ptr": "*i32",
}  # fmt: skip


def sample_case(how: SampleSettings, trigger: str | None, name: str = "", vocabulary: int = 32000) -> GateCase:
    """The case of the sampler, `how` launched."""
    return GateCase(
        f"sample{' ' * bool(name)}{name}{' pdl' if trigger else ''}",
        sample._sample_kernel,
        SAMPLING,
        {**sample.constants(vocabulary, how), "PDL": pdl_code(trigger)},
        aligned=tuple(SAMPLING),
        num_warps=how.num_warps,
        wide_loads=128 * how.num_warps <= sample.BLOCK and vocabulary % 4 == 0,
        wide_stores=False,
        pdl=trigger,
        ci=not trigger and not name,
        denormals=False,  # the library's logarithm flushes them; u and -log(u) are at least 2^-24
    )


def sample_cases() -> list[GateCase]:
    blocks = triton.cdiv(32000, BEST_BLOCK)
    rows = {**dict.fromkeys(("tokens_ptr", "ids_ptr", "positions_ptr", "slots_ptr", "stops_ptr"), "*i64"),
            **dict.fromkeys(("lens_ptr", "left_ptr", "tables_ptr"), "*i32"), "table_stride": "i32"}  # fmt: skip
    cases = []
    for trigger in (None, "early"):
        suffix = " pdl" if trigger else ""
        common: dict[str, Any] = {"pdl": trigger, "ci": not trigger}
        vocabulary = {"V": 32000, "BLOCKS": blocks, "PDL": pdl_code(trigger)}
        cases += [
            sample_case(settings.sample(), trigger),
            sample_case(settings.sample(), trigger, "of 32001", 32001),
            # of sm_90 alone: on sm_80 it spills 8 bytes with so many logits
            *([sample_case(settings.sample(), trigger, "of 128256", 128256)] if trigger else []),
            GateCase(
                f"best_of_blocks{suffix}", sample._best_of_blocks_kernel, {"logits_ptr": "*fp32", "best_ptr": "*i32"},
                {**vocabulary, "BLOCK_N": BEST_BLOCK}, aligned=("logits_ptr", "best_ptr"), wide_stores=False, **common,
            ),
            GateCase(
                f"advance{suffix}", sample._advance_kernel, rows, {"BLOCK": 16, "STOPS": 8, "PDL": pdl_code(trigger)},
                num_warps=1, wide_loads=False, wide_stores=False, **common,
            ),
        ]  # fmt: skip
        cases += [
            GateCase(
                f"embed {kind} {hidden}{suffix}", sample._embed_kernel,
                {"ids_ptr": "*i64", "weight_ptr": f"*{kind}", "out_ptr": f"*{kind}"},
                {"H": hidden, "BLOCK": sample.EMBEDDED, "PDL": pdl_code(trigger)}, aligned=("ids_ptr", "weight_ptr", "out_ptr"),
                pdl=trigger, ci=(hidden, kind, trigger) == (5120, "fp16", None),
            )
            for hidden in (4096, 5120, 6656, 8192)
            for kind in ("fp16", "bf16")
        ]  # fmt: skip
    return cases
