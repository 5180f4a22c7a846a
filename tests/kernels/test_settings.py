"""Launch settings: their rules, what they refuse, and the tables of cards that stand in their place."""

from __future__ import annotations

from typing import Any

import pytest
from launch_tables import FULL

from baize_engine.kernels import reference, settings
from baize_engine.kernels.settings import AttentionSettings, ProductSettings, SampleSettings


def test_what_orders_a_sum_is_the_kernels_own() -> None:
    assert settings.BEST_BLOCK == reference.BEST_BLOCK
    for rows in range(1, 65):
        for op in settings.PRODUCTS:
            for bits in settings.BITS:
                how = settings.product(op, bits, rows)
                how.check(op, bits)
                assert how.block_t(rows) >= min(rows, how.max_block_t)
                assert how.fuse_norm == (op in settings.WITH_NORM and rows <= 8 and (op, bits) != ("head", 8))


@pytest.mark.parametrize(("rows", "wanted"), [(1, 8), (8, 8), (9, 16), (33, 64), (64, 64), (200, 64)])
def test_rows_of_a_program(rows: int, wanted: int) -> None:
    assert settings.product("gate_up", 16, rows).block_t(rows) == wanted
    assert settings.product("gate_up", 4, rows).block_t(rows) == min(wanted, 32)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ProductSettings(48, 128, 2, 5), "block_n is 48, wanted one of 16, 32, 64"),
        (lambda: ProductSettings(64, 128, 4, 3), "is Hopper's wgmma"),
        (lambda: ProductSettings(32, 128, 2, 0), "num_stages is 0"),
        (lambda: ProductSettings(32, 128, 2, True), "num_stages is True"),
        (lambda: ProductSettings(32, 128, 2, 5, trigger="first"), "trigger is 'first', wanted one of 'early', 'late'"),
        (lambda: ProductSettings(64, 128, 2, 5).check("head", 16), "block_n of head is 64, wanted 32"),
        (lambda: ProductSettings(32, 128, 2, 5).check("gate_up", 4), "block_k of int4 is 128, wanted 256"),
        (lambda: ProductSettings(32, 128, 2, 5).check("qkv", 4), "op is 'qkv'"),
        (lambda: AttentionSettings(32), "tile is 32, wanted one of 64, 128"),
        (lambda: AttentionSettings(64, fetch_first=1), "fetch_first is 1"),
        (lambda: SampleSettings(8), "num_warps is 8, wanted one of 16, 32"),
        (lambda: settings.from_dict("attention", 16, {"tile": 64}), "attention lacks the setting 'fetch_first'"),
        (lambda: settings.from_dict("gate_up", 16, {**FULL, "warps": 2}), "gate_up has no setting 'warps'"),
        (lambda: settings.from_dict("rope", 16, {}), "op is 'rope'"),
    ],
)
def test_settings_that_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("rows", settings.TUNED_ROWS)
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("op", settings.PRODUCTS)
def test_every_choice_can_be_made_upon_every_other(op: str, bits: int, rows: int) -> None:
    """The tuner keeps the best of an aspect and goes on to the next: no combination is refused."""
    from dataclasses import asdict, replace

    reached = [settings.product(op, bits, rows)]
    for _, values in settings.product_choices(op, bits, rows):
        reached += [replace(how, **value) for how in reached for value in values]
    for how in reached:
        how.check(op, bits)
        assert settings.from_dict(op, bits, asdict(how)) == how
    assert len(set(reached)) == len(reached)
