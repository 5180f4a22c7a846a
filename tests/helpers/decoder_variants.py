"""The instruction sets of the C++ decoder; those that this machine lacks are skipped with the reason."""

from __future__ import annotations

import pytest

from baize_engine import _C

VARIANTS = [
    pytest.param(
        name, marks=pytest.mark.skipif(_C.decoder_why_not(name) is not None, reason=str(_C.decoder_why_not(name)))
    )
    for name in _C.decoder_variants()
]
