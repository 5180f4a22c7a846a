"""Logits, filters and states for tests of sampling."""

from __future__ import annotations

import torch

ROWS = 12


def arguments(rows: int = ROWS, seed: int = 0, **changes: float) -> dict[str, torch.Tensor]:
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **changes}
    kinds = {"temperature": torch.float32, "top_k": torch.int64, "top_p": torch.float32, "min_p": torch.float32}
    made = {name: torch.full((rows,), value, dtype=kinds[name]) for name, value in values.items()}
    made["seeds"] = torch.arange(rows) * 77_777_777_777 + seed
    made["sample_index"] = torch.arange(rows) % 3
    made["positions"] = torch.arange(rows) * 5
    return made


def logits(vocabulary: int, rows: int = ROWS, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


FILTERS = [
    {"temperature": 0.0}, {}, {"temperature": 0.3}, {"temperature": 2.5}, {"top_k": 1}, {"top_k": 7}, {"top_k": 100000},
    {"top_p": 0.1}, {"top_p": 0.9}, {"min_p": 0.2}, {"top_k": 40, "top_p": 0.8, "min_p": 0.05, "temperature": 0.7},
]  # fmt: skip


def state() -> list[torch.Tensor]:
    tables = torch.tensor([[4, 2, 9], [1, 7, 3], [5, 0, 0], [6, 8, 0]], dtype=torch.int32)
    positions = torch.tensor([15, 31, 3, 20])
    slots = tables.gather(1, (positions // 16)[:, None])[:, 0].long() * 16 + positions % 16
    lens, left = (positions + 1).int(), torch.tensor([5, 2, 1, 9], dtype=torch.int32)
    stops = torch.tensor([[2, -2], [2, -2], [2, 11], [2, 11]])
    return [torch.tensor([50, 51, 52, 53]), positions, slots, lens, left, stops, tables]
