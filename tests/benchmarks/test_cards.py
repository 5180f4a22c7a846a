"""The table of cards: a driver's name finds the card it is, and no other."""

from __future__ import annotations

import subprocess
import sys

import pytest
from assets import REPO
from cards import CARDS, MULTIPROCESSORS, card_of

# flops a cycle of a multiprocessor's tensor cores, float16 summed in float32; GeForce cards run half of sm_86's and sm_89's
FLOPS = {(8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("A100-SXM-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie"),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA A40", "a40"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_a_drivers_name_finds_its_card(name: str, key: str) -> None:
    assert card_of(name) is CARDS[key]


@pytest.mark.parametrize(
    "name",
    [
        "", "NVIDIA", "Tesla V100-SXM2-16GB", "Tesla T4", "NVIDIA GH200 480GB", "NVIDIA H800", "NVIDIA A10G", "NVIDIA A100X",
        "NVIDIA L40", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA RTX 6000 Ada Generation", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA B200", "AMD EPYC 7763, 4 cores",
    ],
)  # fmt: skip
def test_another_card_is_not_taken_for_one_of_them(name: str) -> None:
    assert card_of(name) is None


def test_each_card_is_there_once() -> None:
    patterns = [pattern for card in CARDS.values() for pattern in card.patterns]
    assert len(set(patterns)) == len(patterns)
    assert all(card.key == key for key, card in CARDS.items())
    assert len({card.name for card in CARDS.values()}) == len(CARDS) >= 15


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.key)
def test_its_figures_agree_with_each_other(card) -> None:
    """TFLOP/s are at most what tensor cores do at the boost clock, and near it: power keeps Hopper a little below."""
    peak = card.sms * FLOPS[card.capability] * card.clock / 1e3 / (2 if "GeForce" in card.name else 1)
    assert 0.85 * peak < card.half_tflops < 1.01 * peak
    assert card.source
    assert card.memory < card.bandwidth < 100 * card.memory  # GB/s of GB: read whole between 10 ms and 1 s
    assert card.sm is MULTIPROCESSORS[card.capability]


def test_multiprocessors_are_those_of_the_compile_gate() -> None:
    pytest.importorskip("triton")
    import compile_gate

    for (major, minor), sm in MULTIPROCESSORS.items():
        assert (sm.warps, sm.shared) == (
            compile_gate.WARPS[10 * major + minor],
            compile_gate.SHARED[10 * major + minor],
        )


def test_nothing_is_imported_for_it() -> None:
    code = "import sys, cards; assert 'torch' not in sys.modules; print(cards.card_of('NVIDIA H200').bandwidth)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO / "benchmarks", capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "4800"), done.stderr
