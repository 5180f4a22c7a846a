"""The C++ diff_add in every implementation that this machine runs, against an oracle written here: equal bits, equal sums."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diff_oracle import DTYPES, as_bytes, bits, draw, oracle, same
from implementations import IMPLEMENTATIONS

from baize_engine import _C

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NaN on purpose

LENGTHS = [0, 1, 7, 15, 17, 1023, 1024, 1025, 65535, 65536, 65537, 3 * 65536 + 77]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def check(
    base: torch.Tensor, diff: torch.Tensor, out: str, implementation: str, subtract: bool = False, threads: int = 1
) -> None:
    names = {dtype: name for name, dtype in DTYPES.items()}
    wanted, sums, overflowed, nonfinite = oracle(base, diff, out, subtract)
    guard = bytes(range(64))
    memory = bytearray(guard + bytes(len(wanted)) + guard)
    target = memoryview(memory)[64 : 64 + len(wanted)]
    got = _C.diff_add(
        (as_bytes(base), names[base.dtype]), (as_bytes(diff), names[diff.dtype]), (target, out),
        implementation=implementation, threads=threads, subtract=subtract,
    )  # fmt: skip
    assert bytes(target) == bytes(wanted)
    assert memory[:64] == guard
    assert memory[-64:] == guard
    assert same(got[0], sums)
    assert got[1:] == (overflowed, nonfinite)


@pytest.mark.parametrize("base", DTYPES)
@pytest.mark.parametrize("diff", DTYPES)
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("subtract", [False, True])
def test_every_mix_of_types(implementation: str, base: str, diff: str, out: str, subtract: bool) -> None:
    check(draw(4099, DTYPES[base], 1), draw(4099, DTYPES[diff], 2), out, implementation, subtract)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("out", DTYPES)
def test_every_length(implementation: str, length: int, out: str) -> None:
    check(draw(length, torch.float16, 3), draw(length, torch.float32, 4), out, implementation)


@pytest.mark.parametrize("out", DTYPES)
def test_special_values(implementation: str, out: str) -> None:
    patterns = [
        0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFABCDEF, 0x7F800000, 0xFF800000, 0, 0x80000000, 1, 0x80000001, 0x007FFFFF,
        0x00800000, 0x33000000, 0x33000001, 0x32FFFFFF, 0x33C00000, 0x387FC000, 0x387FE000, 0x38800000, 0x477FE000,
        0x477FEFFF, 0x477FF000, 0x477FF001, 0xC77FF000, 0x7F7FFFFF, 0x7F7F8000, 0x7F7F7FFF, 0x3F808000, 0x3F818000,
        0x3F801000, 0x3F803000, 0x3F801001, 0x3F800FFF,
    ]  # fmt: skip
    values = torch.from_numpy(np.array(patterns, dtype=np.uint32).view(np.float32).copy())
    left, right = torch.meshgrid(values, values, indexing="ij")
    check(left.flatten().contiguous(), right.flatten().contiguous(), out, implementation)
    check(left.flatten().contiguous(), right.flatten().contiguous(), out, implementation, subtract=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("out", DTYPES)
def test_every_16_bit_pattern(implementation: str, dtype: str, out: str) -> None:
    every = torch.arange(65536).to(torch.int16).view(DTYPES[dtype])
    check(every, torch.zeros(65536), out, implementation)
    check(torch.full((65536,), -0.0), every, out, implementation)


@pytest.mark.parametrize("out", ["float16", "bfloat16"])
def test_rounding_next_to_every_tie(implementation: str, out: str) -> None:
    """Each value of the type, the midpoint to its neighbour, and one float32 step to either side of that."""
    finite = torch.arange(0x7C00 if out == "float16" else 0x7F80).to(torch.int16).view(DTYPES[out]).float()
    middle = ((finite[:-1].double() + finite[1:].double()) / 2).float()
    steps = bits(middle.clone())
    near = torch.cat([finite, middle, (steps - 1).view(torch.float32), (steps + 1).view(torch.float32)])
    check(near, torch.full_like(near, -0.0), out, implementation)
    check(-near, torch.full_like(near, -0.0), out, implementation)


def test_threads_change_nothing(implementation: str) -> None:
    base, diff = draw(7 * 65536 + 5, torch.bfloat16, 5), draw(7 * 65536 + 5, torch.float32, 6)
    for threads in (1, 2, 5):
        check(base, diff, "float16", implementation, threads=threads)


@pytest.mark.parametrize("base", DTYPES)
@pytest.mark.parametrize("diff", DTYPES)
@pytest.mark.parametrize("subtract", [False, True])
def test_operands_in_files(tmp_path: Path, implementation: str, base: str, diff: str, subtract: bool) -> None:
    count = 2 * 65536 + 77
    left, right = draw(count, DTYPES[base], 13), draw(count, DTYPES[diff], 14)
    wanted = oracle(left, right, "float16", subtract)
    (tmp_path / "base").write_bytes(b"123" + as_bytes(left))
    (tmp_path / "diff").write_bytes(b"1234567" + as_bytes(right) + b"more")
    out = bytearray(len(wanted[0]))
    with open(tmp_path / "base", "rb") as a, open(tmp_path / "diff", "rb") as b:
        got = _C.diff_add_files(
            (a.fileno(), 3, base, "a"),
            (b.fileno(), 7, diff, "b"),
            (out, "float16"),
            implementation=implementation,
            subtract=subtract,
        )
    assert out == wanted[0]
    assert got is not None
    assert same(got[0], wanted[1])
    assert got[1:] == wanted[2:]


def test_operands_in_files_that_cannot_be_read(tmp_path: Path, implementation: str) -> None:
    (tmp_path / "base").write_bytes(bytes(2 * 70000))
    (tmp_path / "diff").write_bytes(bytes(4 * 70000))

    def add(first: int, offset: int, second: int) -> object:
        out = bytearray(2 * 70000)
        left, right = (first, offset, "float16", "one \udcff file"), (second, 0, "float32", "another")
        return _C.diff_add_files(left, right, (out, "float16"), implementation=implementation)

    with (
        open(tmp_path / "base", "rb") as base,
        open(tmp_path / "diff", "rb") as diff,
        open(tmp_path / "other", "wb") as unreadable,
    ):
        assert add(base.fileno(), 0, diff.fileno()) is not None
        assert add(base.fileno(), 1, diff.fileno()) is None  # a byte too few, in the second chunk
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)) as caught:
            add(base.fileno(), -1, diff.fileno())
        assert caught.value.filename == "one \udcff file"
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught:
            add(base.fileno(), 0, unreadable.fileno())
        assert caught.value.filename == "another"


@pytest.mark.parametrize("shift", [1, 2, 3, 6])
def test_any_alignment(implementation: str, shift: int) -> None:
    base, diff = draw(3000, torch.float16, 7), draw(3000, torch.float32, 8)
    wanted = oracle(base, diff, "float16", False)
    views = [memoryview(bytearray(shift) + as_bytes(tensor))[shift:] for tensor in (base, diff, base)]
    got = _C.diff_add(
        (views[0], "float16"), (views[1], "float32"), (views[2], "float16"), implementation=implementation
    )
    assert bytes(views[2]) == bytes(wanted[0])
    assert same(got[0], wanted[1])


def test_flushing_denormals_elsewhere_changes_nothing(implementation: str) -> None:
    base, diff = draw(5000, torch.float32, 9) * 1e-3, draw(5000, torch.float32, 10) * 1e-3
    wanted = oracle(base, diff, "float32", False)
    out, left, right = bytearray(20000), as_bytes(base), as_bytes(diff)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        got = _C.diff_add((left, "float32"), (right, "float32"), (out, "float32"), implementation=implementation)
        flushed = torch.tensor([1e-40]) + torch.tensor([1e-40])  # the state is the caller's again
    finally:
        torch.set_flush_denormal(False)
    assert out == wanted[0]
    assert same(got[0], wanted[1])
    assert flushed.item() == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("count", [65536, 3])  # 3: the scalar path of the wide implementations
def test_widen_of_every_16_bit_pattern(implementation: str, dtype: str, count: int) -> None:
    every = np.arange(65536, dtype=np.uint16)
    wanted = torch.from_numpy(every.view(np.int16)).view(DTYPES[dtype]).float().numpy().view(np.uint32).copy()
    nan = (every & 0x7FFF) > (0x7C00 if dtype == "float16" else 0x7F80)
    wide = every[nan].astype(np.uint32)
    if dtype == "float16":  # the payload kept, the quiet bit set, as F16C does
        wanted[nan] = (wide & 0x8000) << 16 | 0x7FC00000 | (wide & 0x3FF) << 13
    else:  # bits moved, nothing else
        wanted[nan] = wide << 16
    starts = range(0, 65536, count) if count == 65536 else [0, 1, 0x3FF, 0x7BFE, 0x7C00, 0x7DFF, 0x7F81, 0xFC01, 0xFFFD]
    for start in starts:
        memory = bytearray(b"\xa5" * (4 * count + 32))
        _C.widen(
            every[start : start + count], dtype, memoryview(memory)[17 : 17 + 4 * count], implementation=implementation
        )
        assert bytes(memory[17 : 17 + 4 * count]) == wanted[start : start + count].tobytes()
        assert memory[:17] == b"\xa5" * 17
        assert memory[17 + 4 * count :] == b"\xa5" * 15


@pytest.mark.parametrize("dtype", DTYPES)
def test_widen_and_add_rows(dtype: str) -> None:
    rows = draw(57 * 33, DTYPES[dtype], 11).reshape(57, 33)
    out = bytearray(57 * 33 * 4)
    _C.widen(as_bytes(rows), dtype, out)
    assert bytes(out) == bytes(as_bytes(rows.float()))
    start = draw(33, torch.float32, 12).double().numpy()
    sums = start.copy()
    _C.add_rows(sums, as_bytes(rows[:20]), dtype)
    _C.add_rows(sums, as_bytes(rows[20:]), dtype)
    for row in rows.double().numpy():
        start = start + row
    assert sums.tobytes() == start.tobytes()


GOOD = {"base_dtype": "float16", "diff_dtype": "float32", "out_dtype": "float16", "implementation": "scalar"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": bytes(10)}, "base has 10 bytes, wanted 8"),
        ({"diff": bytes(8)}, "diff has 8 bytes, wanted 16"),
        ({"out": bytearray(7)}, "out has 7 bytes, wanted a multiple of 2"),
        ({"out_dtype": "float8"}, "out's dtype is 'float8'"),
        ({"implementation": "mmx"}, "implementation is 'mmx', wanted one of"),
        ({"threads": 0}, "threads is 0, wanted 1 to 1024"),
        ({"threads": 100_000}, "threads is 100000, wanted 1 to 1024"),
        ({"base": memoryview(bytes(16))[::2]}, "base has stride 2 in dimension 0, wanted 1"),
        ({"out": bytes(8)}, "out is read-only"),
    ],
)
def test_wrong_arguments_are_named(changes: dict, message: str) -> None:
    call = {"base": bytes(8), "diff": bytes(16), "out": bytearray(8), **GOOD, **changes}
    positional = [(call.pop(name), call.pop(f"{name}_dtype")) for name in ("base", "diff", "out")]
    with pytest.raises(ValueError, match=message):
        _C.diff_add(*positional, **call)


def test_overlapping_memory_is_refused() -> None:
    memory = memoryview(bytearray(64))
    with pytest.raises(ValueError, match="out overlaps base"):
        _C.diff_add((memory[:8], "float16"), (bytes(16), "float32"), (memory[6:14], "float16"), implementation="scalar")
    with pytest.raises(ValueError, match="out overlaps diff"):
        _C.diff_add((bytes(8), "float16"), (memory[:16], "float32"), (memory[:8], "float16"), implementation="scalar")
    with pytest.raises(ValueError, match="out overlaps src"):
        _C.widen(memory[:8], "float16", memory[4:20])
    with pytest.raises(ValueError, match="acc overlaps rows"):
        _C.add_rows(memory[:16], memory[8:16], "float32")


def test_neighbouring_and_empty_memory_is_taken() -> None:
    memory = memoryview(bytearray(64))
    assert _C.diff_add(
        (memory[:8], "float16"), (memory[8:24], "float32"), (memory[24:32], "float16"), implementation="scalar"
    ) == ([0.0], 0, 0)  # fmt: skip
    _C.widen(np.zeros((2, 0), np.float16), "float16", np.zeros((2, 0), np.float32))
    assert bytes(memory) == bytes(64)


def test_wrong_rows_and_sums_are_named() -> None:
    with pytest.raises(ValueError, match="rows has 6 bytes, wanted whole rows of 8"):
        _C.add_rows(bytearray(32), bytes(6), "float16")
    with pytest.raises(ValueError, match="acc has 12 bytes, wanted aligned float64"):
        _C.add_rows(bytearray(12), bytes(6), "float16")
    with pytest.raises(ValueError, match="out has 8 bytes, wanted 16"):
        _C.widen(bytes(8), "float16", bytearray(8))
