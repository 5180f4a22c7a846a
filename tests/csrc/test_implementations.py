"""The table of the C++ implementations, and that each algorithm's header stands alone."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from assets import REPO

from baize_engine import _C

COMPILER = os.environ.get("CXX", "c++")
SETS = {"byte_tiles.h": ["avx512"], "byte_panels.h": ["scalar", "avx2"]}  # the vector types of a header; else all
TARGETS = {
    "scalar": "",
    "avx2": '__attribute__((target("avx2,fma,f16c")))',
    "avx512": '__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))',
}
HEADERS = sorted(path.name for path in (REPO / "csrc" / "generic").glob("*.h"))
SOURCES = sorted(path for folder in ("", "generic", "isa") for path in (REPO / "csrc" / folder).glob("*.[ch]*"))


def test_implementations_are_listed_best_first_and_unable_ones_raise() -> None:
    rows = _C.implementations()
    order = ["amx", "avx512", "avx_vnni", "avx2", "scalar"]
    assert [row.name for row in rows] == [name for name in order if name in {row.name for row in rows}]
    assert (rows[-1].name, rows[-1].why_not()) == ("scalar", None)
    with pytest.raises(ValueError, match="implementation is 'mmx', wanted one of"):
        _C.widen(bytes(8), "float16", bytearray(16), implementation="mmx")
    for row in rows:
        if reason := row.why_not():
            with pytest.raises(RuntimeError, match=reason):
                _C.widen(bytes(8), "float16", bytearray(16), implementation=row.name)


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no compiler {COMPILER}")
@pytest.mark.parametrize(
    ("header", "name"), [(header, name) for header in HEADERS for name in SETS.get(header, list(TARGETS))]
)
def test_an_algorithm_needs_the_vector_type_and_nothing_else(header: str, name: str) -> None:
    """So that they can be included in any order."""
    if name != "scalar" and platform.machine() != "x86_64":
        pytest.skip(f"{name} is not of {platform.machine()}")
    source = f'#define BAIZE_TARGET {TARGETS[name]}\n#include "csrc/isa/{name}.h"\n#include "csrc/generic/{header}"\n'
    command = [COMPILER, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-I", str(REPO), "-xc++", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_a_source_has_at_most_300_lines_of_110_columns(source: Path) -> None:
    lines = source.read_text().splitlines()
    assert len(lines) <= 300
    assert [n for n, line in enumerate(lines, 1) if len(line) > 110] == []
