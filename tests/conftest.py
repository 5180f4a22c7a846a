"""Fixtures that several files of tests share; one of the same name in a file goes before these."""

from __future__ import annotations

from pathlib import Path

import faulty_recover
import pytest
import tiny

from baize_engine import recover


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny base and diff."""
    return tiny.write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def tuned(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pair recovers to by the plain call."""
    out = tmp_path_factory.mktemp("plain") / "tuned"
    recover(*pair, out, device="cpu", progress=False)
    return out


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that lets calls of the system fail (io_faults.c)."""
    found, why_not = faulty_recover.compile_shim(tmp_path_factory.mktemp("shim"))
    if why_not:
        pytest.skip(why_not)
    return found
