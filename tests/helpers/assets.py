"""Where tests find the optional shared assets (a real small model, a tokenizer); they skip, with a reason, without them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("BAIZE_SHARED", REPO.parent / "shared"))


def shared(relative: str) -> Path:
    """The path of a shared asset, such as "assets/tokenizer_32000.model", or a skip that says what is missing."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"shared asset {relative} is absent (set BAIZE_SHARED to the folder that holds it)")
    return path
