"""The GPU's side of recovery: the arithmetic of its parts here; its bits where there is a GPU."""

from __future__ import annotations

import pytest
import torch
from test_diff_add_cpp import DTYPES, as_bytes, draw

from baize_engine import _C
from baize_engine.recovery.cuda_adder import CHUNK, PART, SLOTS, CudaAdder, parts


@pytest.mark.parametrize("count", [1, CHUNK, PART - 1, PART, PART + 1, 5 * PART + 7])
def test_parts_cover_a_piece_once_in_whole_chunks(count: int) -> None:
    found = list(parts(count))
    assert [begin for _, begin, _ in found] == [0, *(end for _, _, end in found[:-1])]
    assert found[-1][2] == count
    assert all(begin % CHUNK == 0 and 0 < end - begin <= PART for _, begin, end in found)
    assert [slot for slot, _, _ in found] == [number % SLOTS for number in range(len(found))]


@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 1, 65537, 3 * PART + 77])
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("base", DTYPES)
def test_bits_and_sums_are_those_of_the_cpu(base: str, out: str, count: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    adder = CudaAdder("cuda")
    left, right = as_bytes(draw(count, DTYPES[base], 1)), as_bytes(draw(count, torch.float32, 2))
    wanted = bytearray(count * DTYPES[out].itemsize)
    stats = _C.diff_add(left, base, right, "float32", wanted, out, variant="scalar")
    views = [adder.buffer(len(content)) for content in (left, right, wanted)]
    views[0][:], views[1][:] = left, right
    assert adder.add(views[0], base, views[1], "float32", views[2], out) == stats
    assert bytes(views[2]) == bytes(wanted)
