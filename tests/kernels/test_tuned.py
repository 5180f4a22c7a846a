"""Tables of launch settings that were measured on cards: how they are read, what they refuse, whose settings a card takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launch_tables import FULL, H100, write

from baize_engine.kernels import settings, tuned
from baize_engine.kernels.settings import AttentionSettings, ProductSettings, SampleSettings
from baize_engine.kernels.tuned import NO_TABLE, Table, nearest


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
