"""Every wrapper launches kernels that compile as called: what neither the interpreter nor the gate sees. No GPU needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from assets import REPO
from compile_gate import SHARED_LIMIT, kernel_modules, kernels_of


@cache
def launches(dependent: str, quantize: str, dtype: str = "float16") -> list[dict[str, Any]]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPO / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(Path(__file__).with_name("launches.py")), dependent, quantize, dtype]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("quantize", "dtype"), [("none", "float16"), ("int8", "bfloat16"), ("int4", "float16"), ("none", "float32")]
)
def test_a_decoders_launches_compile(quantize: str, dtype: str) -> None:
    found = launches("pdl", quantize, dtype)
    names = {one["kernel"] for one in found}
    every = {name for module in kernel_modules() for name in kernels_of(module)}
    elsewhere = {"_dequantize_kernel"} if quantize == "none" else set()
    assert names == every - elsewhere
    assert all(one["pdl"] and one["waits"] for one in found if one["kernel"] != "_diff_add_kernel")
    products = [one for one in found if one["kernel"] == "_product_kernel"]
    assert all(one["tensor_cores"] for one in products) == (dtype != "float32")
    assert all(one["shared"] <= SHARED_LIMIT[89] for one in found)  # the smallest of the gate's GPUs


def test_without_dependent_launch_no_kernel_waits() -> None:
    found = launches("plain", "none")
    assert not any(one["pdl"] or one["waits"] for one in found)


def test_the_sizes_of_a_recovery_take_two_kernels() -> None:
    """One of whole chunks and one of a rest, wherever they begin: each more would take a second in its midst."""
    adds = [one for one in launches("plain", "none") if one["kernel"] == "_diff_add_kernel"]
    assert len(adds) > 40
    assert len({one["compiled"] for one in adds}) == 2


def test_the_rows_of_a_step_take_few_kernels() -> None:
    """One of each for 1, 8, 16, 32 and 64 rows, and for the token after a prompt: what is read of a row lies alike in all."""
    found = launches("plain", "none")
    for kernel in ("_advance_kernel", "_embed_kernel", "_attention_decode_kernel", "_sample_kernel"):
        assert len({one["compiled"] for one in found if one["kernel"] == kernel}) == 1, kernel
