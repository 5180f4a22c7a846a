"""The table of the C++ implementations, and that each algorithm's header stands alone."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

import pytest
from assets import REPO

from baize_engine import _C

COMPILER = os.environ.get("CXX", "c++")
SETS = {"byte_tiles.h": "avx512"}  # the vector type that a header is for; else any will do
TARGETS = {
    "scalar": "",
    "avx512": '__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))',
}


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
@pytest.mark.parametrize("header", sorted(path.name for path in (REPO / "csrc" / "generic").glob("*.h")))
def test_an_algorithm_needs_the_vector_type_and_nothing_else(header: str) -> None:
    """So that they can be included in any order."""
    name = SETS.get(header, "scalar")
    if name != "scalar" and platform.machine() != "x86_64":
        pytest.skip(f"{name} is not of {platform.machine()}")
    source = f'#define BAIZE_TARGET {TARGETS[name]}\n#include "csrc/isa/{name}.h"\n#include "csrc/generic/{header}"\n'
    command = [COMPILER, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-I", str(REPO), "-xc++", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
