"""A card's table of launch settings on disk (kernels/tuned/README.md): written whole after each thing that was tuned.

Knows no measurement, but what an earlier run on the same card left.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import tuner
from common import commit, versions
from tuner import Found, Known

from baize_engine.kernels import tuned


@dataclass(frozen=True)
class Card:
    """What a table is for."""

    gpu: str
    capability: tuple[int, int]
    sms: int

    @classmethod
    def of(cls, device: torch.device) -> Card:
        found = torch.cuda.get_device_properties(device)
        return cls(found.name, (found.major, found.minor), found.multi_processor_count)


class TableFile:
    """The table at `path`. SystemExit where a table of another card, or something else, is there."""

    def __init__(self, path: Path, card: Card) -> None:
        self.path, self.card = path, card
        self.known: Known = {}
        self._begin = time.perf_counter()
        self._made_by = {"commit": commit(), "versions": versions("torch", "triton")}
        if path.exists():
            self.known = _earlier(path, card)
        self.kept = sum(len(places) for places in self.known.values())

    def add(self, ops: Iterable[tuner.Op], found: Mapping[str, Found]) -> None:
        """Writes the table with what was found for these ops, whole or not at all."""
        for op in ops:
            if op.name in found:
                self.known.setdefault(op.key, {})[op.rows] = found[op.name]
        head = {
            "gpu": self.card.gpu, "capability": list(self.card.capability), "sms": self.card.sms, **self._made_by,
            "measured": date.today().isoformat(), "seconds": round(time.perf_counter() - self._begin, 1),
        }  # fmt: skip
        lines = ",\n".join(f"  {json.dumps(entry)}" for entry in tuner.entries(self.known))
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(head)[:-1] + f', "entries": [\n{lines}\n]}}\n')
        tuned.read(part)
        os.replace(part, self.path)


def _earlier(path: Path, card: Card) -> Known:
    try:
        before = tuned.read(path)
        known = tuner.of_file(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"--out: {error}") from error
    if (before.gpu, before.capability, before.sms) != (card.gpu, card.capability, card.sms):
        raise SystemExit(
            f"--out: {path} is the table of {before.gpu}, {before.sms} multiprocessors, wanted {card.gpu}'s"
        )
    return known
