"""Every wrapper launches kernels that compile as called: what neither the interpreter nor the gate sees. No GPU needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from assets import REPO

from baize_engine.kernels import gate


def launches(dependent: str, quantize: str, dtype: str = "float16") -> list[dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO / "tests"), os.environ.get("PYTHONPATH", "")])}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(REPO / "tests" / "launches.py"), dependent, quantize, dtype]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("quantize", "dtype"), [("none", "float16"), ("int8", "bfloat16"), ("int4", "float16"), ("none", "float32")]
)
def test_a_decoders_launches_compile(quantize: str, dtype: str) -> None:
    found = launches("pdl", quantize, dtype)
    names = {one["kernel"] for one in found}
    every = {name for module in gate.kernel_modules() for name in gate.kernels_of(module)}
    elsewhere = {"_diff_add_kernel", *(["_dequantize_kernel"] if quantize == "none" else [])}
    assert names == every - elsewhere
    assert all(one["pdl"] and one["waits"] for one in found)
    products = [one for one in found if one["kernel"] == "_product_kernel"]
    assert all(one["tensor_cores"] for one in products) == (dtype != "float32")
    assert all(one["shared"] <= gate.SHARED_LIMIT[89] for one in found)  # the smallest of the gate's GPUs


def test_without_dependent_launch_no_kernel_waits() -> None:
    found = launches("plain", "none")
    assert not any(one["pdl"] or one["waits"] for one in found)
