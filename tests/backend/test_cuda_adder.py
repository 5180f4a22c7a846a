"""The GPU's side of recovery: the arithmetic of its parts here; its bits where there is a GPU."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from diff_oracle import DTYPES, as_bytes, draw

from baize_engine import _C
from baize_engine.backend.adders import Operand
from baize_engine.backend.cuda_adder import CHUNK, PART, SLOTS, CudaAdder, parts
from baize_engine.kernels import diff_add, reference


@pytest.mark.parametrize("count", [1, CHUNK, PART - 1, PART, PART + 1, 5 * PART + 7])
def test_parts_cover_a_piece_once_in_whole_chunks(count: int) -> None:
    found = list(parts(count))
    assert [begin for _, begin, _ in found] == [0, *(end for _, _, end in found[:-1])]
    assert found[-1][2] == count
    assert all(begin % CHUNK == 0 and 0 < end - begin <= PART for _, begin, end in found)
    assert [slot for slot, _, _ in found] == [number % SLOTS for number in range(len(found))]


def test_workers_that_begin_together_compile_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU with streams and kernels that are the host's: bits and sums of the CPU, each type of sum compiled once an
    adder, and never by two at a time."""
    compiling, most, asked = [0], [0], []

    def compile_for(dtypes: tuple[torch.dtype, ...], device: torch.device, *, subtract: bool) -> None:
        compiling[0] += 1
        most[0] = max(most[0], compiling[0])
        time.sleep(0.02)
        asked.append((dtypes, subtract))
        compiling[0] -= 1

    def launch(base: torch.Tensor, diff: torch.Tensor, out: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor, *,
               subtract: bool) -> None:  # fmt: skip
        made, stats = reference.diff_add(base, diff, out.dtype, subtract=subtract)
        out.copy_(made)
        sums.copy_(stats.chunk_sums)
        counts.zero_()
        counts[:, 0] = torch.tensor([stats.overflowed, stats.nonfinite])

    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    for name, fake in (
        ("Stream", lambda: stream), ("stream", lambda given: nullcontext()), ("device", lambda given: nullcontext()),
        ("current_stream", lambda: stream), ("synchronize", lambda given: None),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(diff_add, "compile_for", compile_for)
    monkeypatch.setattr(diff_add, "launch", launch)
    count = PART + 77
    left, right = (as_bytes(torch.randn(count).to(dtype)) for dtype in (torch.float16, torch.float32))
    wanted = bytearray(count * 2)
    stats = _C.diff_add((left, "float16"), (right, "float32"), (wanted, "float16"), implementation="scalar")

    def work(_: int) -> None:
        adder, out = CudaAdder("cpu"), bytearray(count * 2)
        for _ in range(2):
            got = adder.add(
                Operand(memoryview(left), "float16"),
                Operand(memoryview(right), "float32"),
                Operand(memoryview(out), "float16"),
            )
            assert (out, got) == (wanted, stats)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert most == [1]
    assert asked == [((torch.float16, torch.float32, torch.float16), False)] * 6


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
    stats = _C.diff_add((left, base), (right, "float32"), (wanted, out), implementation="scalar")
    views = [adder.buffer(len(content)) for content in (left, right, wanted)]
    views[0][:], views[1][:] = left, right
    assert adder.add(*map(Operand, views, (base, "float32", out))) == stats
    assert bytes(views[2]) == bytes(wanted)
