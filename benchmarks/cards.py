"""Specifications of the GPUs that the kernels serve (sm_80 to sm_90), found by the name that the driver gives.

All figures come from the documents named; none is measured. Pure: knows neither torch nor a device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Multiprocessor:
    """What the programs of a GPU of one generation share on a multiprocessor (CUDA C++ Programming Guide)."""

    shared: int  # bytes of shared memory; each program takes 1024 for itself
    registers: int  # 32 bits each
    warps: int
    programs: int


MULTIPROCESSORS = {
    (8, 0): Multiprocessor(167936, 65536, 64, 32),
    (8, 6): Multiprocessor(102400, 65536, 48, 16),
    (8, 9): Multiprocessor(102400, 65536, 48, 24),
    (9, 0): Multiprocessor(233472, 65536, 64, 32),
}


@dataclass(frozen=True)
class Card:
    """A GPU as it is sold."""

    key: str
    name: str
    patterns: tuple[str, ...]  # words, all of which are in torch.cuda.get_device_name
    capability: tuple[int, int]
    sms: int
    bandwidth: float  # GB/s
    l2: float  # MiB
    half_tflops: float  # of dense float16 products that are summed in float32
    clock: float  # GHz, boost
    memory: float  # GB
    source: str

    @property
    def sm(self) -> Multiprocessor:
        return MULTIPROCESSORS[self.capability]


_HOPPER = "H100 Tensor Core GPU Architecture (white paper) and H100 data sheet"
_AMPERE = "A100 Tensor Core GPU Architecture (white paper) and A100 data sheet"
_GA102 = "Ampere GA102 GPU Architecture (white paper)"
_ADA = "Ada GPU Architecture (white paper 2.01)"

CARDS = {
    card.key: card
    for card in (
        Card("h100", "H100 SXM", ("h100 80gb hbm3",), (9, 0), 132, 3350, 50, 989.4, 1.98, 80, _HOPPER),
        Card("h100-pcie", "H100 PCIe", ("h100 pcie",), (9, 0), 114, 2000, 50, 756.4, 1.755, 80, _HOPPER),
        Card(
            "h100-nvl", "H100 NVL", ("h100 nvl",), (9, 0), 132, 3938, 60, 835.5, 1.785, 94,
            "H100 NVL product brief (PB-11773); L2: six memory stacks of 10 MB each in the H100 white paper",
        ),
        Card(
            "h200", "H200 SXM", ("h200",), (9, 0), 132, 4800, 60, 989.4, 1.98, 141,
            "H200 data sheet; L2: as H100 NVL",
        ),
        Card(
            "h200-nvl", "H200 NVL", ("h200 nvl",), (9, 0), 132, 4800, 60, 835.5, 1.785, 141,
            "H200 data sheet; L2: as H100 NVL",
        ),
        Card("a100", "A100 SXM 80 GB", ("a100 sxm4 80gb", "a100 sxm 80gb"), (8, 0), 108, 2039, 40, 312, 1.41, 80, _AMPERE),
        Card("a100-40gb", "A100 SXM 40 GB", ("a100 sxm4 40gb", "a100 sxm 40gb"), (8, 0), 108, 1555, 40, 312, 1.41, 40, _AMPERE),
        Card("a100-pcie", "A100 PCIe 80 GB", ("a100 80gb pcie",), (8, 0), 108, 1935, 40, 312, 1.41, 80, _AMPERE),
        Card("a100-pcie-40gb", "A100 PCIe 40 GB", ("a100 pcie 40gb",), (8, 0), 108, 1555, 40, 312, 1.41, 40, _AMPERE),
        Card("a6000", "RTX A6000", ("rtx a6000",), (8, 6), 84, 768, 6, 154.8, 1.8, 48, _GA102),
        Card("a40", "A40", ("a40",), (8, 6), 84, 696, 6, 149.7, 1.74, 48, "A40 data sheet"),
        Card("a10", "A10", ("a10",), (8, 6), 72, 600, 6, 125, 1.695, 24, "A10 data sheet"),
        Card("rtx3090", "GeForce RTX 3090", ("rtx 3090",), (8, 6), 82, 936, 6, 71, 1.695, 24, _GA102),
        Card("l40s", "L40S", ("l40s",), (8, 9), 142, 864, 96, 362.05, 2.52, 48, f"L40S data sheet; L2: L40's in {_ADA}"),
        Card("l4", "L4", ("l4",), (8, 9), 58, 300, 48, 121, 2.04, 24, f"L4 data sheet and {_ADA}"),
        Card("rtx4090", "GeForce RTX 4090", ("rtx 4090",), (8, 9), 128, 1008, 72, 165.2, 2.52, 24, _ADA),
    )
}  # fmt: skip
OTHERS = {"mig", "ti", "d", "laptop", "max"}  # words that make it another card than the one so named without them


def card_of(device_name: str) -> Card | None:
    """The card of that name, by the pattern of the most words; None for one that is not known, or a slice of one (MIG)."""
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    found = [
        (len(pattern.split()), card)
        for card in CARDS.values()
        for pattern in card.patterns
        if words.issuperset(pattern.split()) and not words & OTHERS
    ]
    return max(found, key=lambda match: match[0], default=(0, None))[1]
