"""Launch settings: their rules, what they refuse, and the tables of cards that stand in their place."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launch_tables import FULL, H100, write

from baize_engine.kernels import reference, settings, tuned
from baize_engine.kernels.settings import AttentionSettings, ProductSettings, SampleSettings
from baize_engine.kernels.tuned import NO_TABLE, Table, nearest


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


# Tables


def test_a_table_says_how_and_the_rules_the_rest(tmp_path: Path) -> None:
    table = tuned.read(write(tmp_path))
    assert (table.name, table.gpu, table.capability, table.sms) == ("card.json", H100, (9, 0), 132)
    device, shape = torch.device("cpu"), (27648, 5120)
    rule = settings.product("gate_up", 16, 5)
    assert tuned.product("gate_up", 16, shape, 5, device) == rule
    with tuned.using(table):
        assert tuned.table(device) is table
        assert tuned.product("gate_up", 16, shape, 5, device) == ProductSettings(**FULL)
        assert tuned.product("gate_up", 16, shape, 4, device) == settings.product("gate_up", 16, 4)
        assert tuned.product("gate_up", 16, shape, 9, device) == settings.product("gate_up", 16, 9)
        assert tuned.product("gate_up", 8, shape, 5, device) == settings.product("gate_up", 8, 5)
        assert tuned.product("gate_up", 16, (22016, 4096), 5, device) == rule
        assert tuned.attention(2, (40, 40, 128), 1, device) == settings.attention(2)
        assert tuned.sample(32000, 1, device) == settings.sample()
        with tuned.using(NO_TABLE):
            assert tuned.product("gate_up", 16, shape, 5, device) == rule
    assert tuned.table(device) is NO_TABLE


def test_a_vocabulary_with_a_few_tokens_more_is_launched_alike(tmp_path: Path) -> None:
    held = {"op": "head", "bits": 16, "shape": [32000, 5120], "rows": 8, "settings": FULL}
    drawn = {"op": "sample", "bits": 32, "shape": [32000], "rows": 8, "settings": {"num_warps": 32, "radix": 2}}
    seen = {"op": "attention", "bits": 16, "shape": [40, 40, 128], "rows": 8,
            "settings": {"tile": 128, "num_warps": 8, "fetch_first": True, "trigger": "first"}}  # fmt: skip
    table, device = tuned.read(write(tmp_path, entries=[held, drawn, seen])), torch.device("cpu")
    with tuned.using(table):
        for vocabulary in (32000, 32001, 32003, 31999, 32064):
            assert tuned.product("head", 16, (vocabulary, 5120), 8, device) == ProductSettings(**FULL)
            assert tuned.sample(vocabulary, 8, device) == SampleSettings(32, 2)
        assert tuned.product("head", 16, (32001, 4096), 8, device) == settings.product("head", 16, 8)
        assert tuned.product("head", 8, (32001, 5120), 8, device) == settings.product("head", 8, 8)
        assert tuned.product("head", 16, (32768, 5120), 8, device) == settings.product("head", 16, 8)
        assert tuned.sample(50000, 1, device) == settings.sample()
        assert tuned.attention(2, (40, 40, 128), 7, device) == AttentionSettings(128, 8, True, "first")
        assert tuned.attention(2, (41, 40, 128), 1, device) == settings.attention(2)


def entry(**changes: Any) -> dict[str, Any]:
    return {"op": "gate_up", "bits": 16, "shape": [27648, 5120], "rows": 8, "settings": FULL, **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"entries": [entry(rows=3)]}, "entry 0: rows is 3, wanted one of 1, 2, 4"),
        ({"entries": [entry(), entry()]}, "entry 1: gate_up of 16 bits, .* 8 rows is there twice"),
        ({"entries": [entry(), entry(rows=16, bits=4)]}, "entry 1: block_k of int4 is 128, wanted 256"),
        ({"entries": [entry(settings={**FULL, "num_warps": 3})]}, "entry 0: num_warps is 3"),
        ({"entries": [{"op": "gate_up"}]}, "entry 0: lacks 'bits'"),
        ({"entries": ["gate_up"]}, "entry 0: "),
        ({"entries": None}, "card.json: "),
        ({"capability": "9.0"}, "card.json: "),
        ({"sms": None}, "card.json: "),
    ],
)
def test_a_table_that_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ValueError, match=said) as raised:
        tuned.read(path)
    assert str(path) in str(raised.value)


def test_a_table_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"card\.json: "):
        tuned.read(path)


def card(name: str, capability: tuple[int, int], sms: int) -> Table:
    return Table(f"{name}.json", name, capability, sms, {})


CARDS = [
    card("h100", (9, 0), 132),
    card("h100-pcie", (9, 0), 114),
    card("a100", (8, 0), 108),
    card("4090", (8, 9), 128),
]


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (("h100", (9, 0), 132), "h100"),
        (("h200", (9, 0), 132), "h100"),
        (("h100 nvl", (9, 0), 120), "h100-pcie"),
        (("a100", (8, 0), 108), "a100"),
        (("l40s", (8, 9), 142), "4090"),
        (("a6000", (8, 6), 84), "4090"),
        (("b200", (10, 0), 148), ""),
        (("t4", (7, 5), 40), ""),
    ],
)
def test_the_nearest_card(asked: tuple[str, tuple[int, int], int], wanted: str) -> None:
    assert nearest(CARDS, *asked).gpu == wanted


def test_a_card_with_a_table_of_its_own_takes_it() -> None:
    own = card("h200", (9, 0), 132)
    assert nearest([*CARDS, own], "h200", (9, 0), 132) is own
    assert nearest([], "h200", (9, 0), 132) is NO_TABLE


def test_a_gpu_reads_the_tables_beside_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    device = torch.device("cuda:0")
    facts = SimpleNamespace(name=H100, major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    tuned.of_device.cache_clear()
    try:
        assert tuned.table(device).name == "card.json"
        assert tuned.product("gate_up", 16, (27648, 5120), 8, device) == ProductSettings(**FULL)
    finally:
        tuned.of_device.cache_clear()


def test_shipped_tables_are_right() -> None:
    for path in tuned.FOLDER.glob("*.json"):
        assert tuned.read(path).entries, path.name
