"""The reader of torch.save's files: right offsets for good ones; for bad ones an error and no code run."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from baize_engine.checkpoint.torch_file import read_torch
from baize_engine.errors import BaizeError, CheckpointError

TENSORS = {
    "half": torch.arange(15).half().view(3, 5),
    "brain": torch.arange(7).bfloat16(),
    "single": torch.arange(8.0).view(2, 2, 2),
    "whole": torch.arange(9),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 4),
}


def stored_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def check(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    content = path.read_bytes()
    found = {entry.name: entry for entry in read_torch(path)}
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        entry = found[name]
        assert (entry.dtype, entry.shape) == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        assert content[entry.offset : entry.offset + entry.nbytes] == stored_bytes(tensor)


def test_every_tensor_lies_where_it_is_said(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "m.bin")
    check(tmp_path / "m.bin", TENSORS)


def test_the_state_dict_of_a_module_with_its_metadata(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).state_dict()
    assert isinstance(state, OrderedDict)
    torch.save(state, tmp_path / "m.bin")
    check(tmp_path / "m.bin", dict(state))


def test_parameters_and_shared_and_sliced_storages(tmp_path: Path) -> None:
    rows = torch.arange(20.0).view(4, 5)
    tensors = {"all": rows, "again": rows, "part": rows[1:3], "parameter": torch.nn.Parameter(torch.ones(3))}
    torch.save(tensors, tmp_path / "m.bin")
    check(tmp_path / "m.bin", {name: tensor.detach() for name, tensor in tensors.items()})


def test_a_transposed_tensor_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(6.0).view(2, 3).t()}, tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match=r"w: stride \(1, 3\) of shape \(3, 2\)"):
        read_torch(tmp_path / "m.bin")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"state_dict": {"w": torch.ones(2)}}, "state_dict is a dict, wanted a flat dict"),
        ({"w": torch.ones(2), "step": 7}, "step is a int"),
        ({3: torch.ones(2)}, "int is a Tensor"),
        ([torch.ones(2)], "holds a list"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "refused"),
    ],
)
def test_what_is_no_flat_dict_of_tensors(tmp_path: Path, value: object, message: str) -> None:
    torch.save(value, tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match=message):
        read_torch(tmp_path / "m.bin")


@pytest.mark.parametrize("name", ["m.bin", "consolidated.00.pth"])
def test_old_files_get_a_remedy_that_works(tmp_path: Path, name: str) -> None:
    tensors = {"half": TENSORS["half"], "single": TENSORS["single"]}
    torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6.*python -c") as refused:
        read_torch(tmp_path / name)
    program = str(refused.value).split('python -c "')[1].removesuffix('"')
    subprocess.run([sys.executable, "-c", program.replace("OLD", name).replace("NEW", "new")], cwd=tmp_path, check=True)
    check(tmp_path / "new", tensors)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"", "wanted a zip archive"),
        (b"hello", "wanted a zip archive"),
        (b"PK\x03\x04" + bytes(100), "not a whole zip archive"),
    ],
)
def test_what_is_no_such_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_torch(tmp_path / "m.bin")


# Hostile programs. Each would leave a file behind if it ran.


class Runs:
    """Pickles as a call of anything."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> object:
        return self.call


class SetsState:
    def __reduce__(self) -> object:
        return OrderedDict, (), {"__setstate__": Runs(os.system, "touch ran"), "x": 1}


def archive(path: Path, program: bytes, entries: dict[str, bytes] | None = None, compress: bool = False) -> Path:
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("archive/data.pkl", program)
        for name, content in (entries or {}).items():
            file.writestr(f"archive/{name}", content)
    return path


def marker(tmp_path: Path) -> str:
    return f"touch {tmp_path / 'ran'}"


HOSTILE = {
    "os.system": lambda t: Runs(os.system, marker(t)),
    "nested": lambda t: {"w": [({"x": Runs(os.system, marker(t))},)]},
    "eval": lambda t: Runs(eval, f"__import__('os').system({marker(t)!r})"),
    "getattr chain": lambda t: Runs(getattr, Runs(__import__, "os"), "system"),
    "state": lambda t: SetsState(),
    "builtins.open": lambda t: Runs(open, str(t / "ran"), "w"),
    "torch.load": lambda t: Runs(torch.load, str(t / "ran")),
    "partial": lambda t: Runs(__import__("functools").partial, os.system, marker(t)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_no_code_runs(tmp_path: Path, case: str) -> None:
    path = archive(tmp_path / "m.bin", pickle.dumps(HOSTILE[case](tmp_path), protocol=2))
    with pytest.raises(CheckpointError, match="which no weight file needs"):
        read_torch(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin"]


def program(storage: tuple, offset: object = 0, shape: object = (2,), stride: object = (1,)) -> bytes:
    """A state dict of one tensor "w" with whatever description."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self) -> object:
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, stride, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return storage if isinstance(value, Storage) else None

    out = io.BytesIO()
    Pickler(out, protocol=2).dump({"w": Tensor()})
    return out.getvalue()


FLOATS = ("storage", torch.FloatStorage, "0", "cpu", 2)
LIES = {
    "beyond the storage": (program(FLOATS, offset=1), {"data/0": bytes(8)}, "elements 1 to 3 of a storage that has 2"),
    "storage larger than entry": (program((*FLOATS[:4], 4)), {"data/0": bytes(8)}, "has 8 bytes, wanted 16"),
    "storage smaller than entry": (program(FLOATS), {"data/0": bytes(12)}, "has 12 bytes, wanted 8"),
    "no such entry": (program(FLOATS), {}, "no entry data/0"),
    "entry elsewhere": (program((*FLOATS[:2], "../../x", "cpu", 2)), {"data/0": bytes(8)}, "no entry data/../../x"),
    "negative offset": (program(FLOATS, offset=-1), {"data/0": bytes(8)}, "natural numbers"),
    "negative shape": (program(FLOATS, shape=(-2,)), {"data/0": bytes(8)}, "natural numbers"),
    "huge shape": (
        program(FLOATS, shape=(1 << 40, 1 << 40), stride=(1 << 40, 1)),
        {"data/0": bytes(8)},
        "of a storage that has 2",
    ),
    "huger still": (program(FLOATS, shape=(1 << 70,)), {"data/0": bytes(8)}, "natural numbers"),
    "strides short": (program(FLOATS, shape=(2, 1)), {"data/0": bytes(8)}, "natural numbers"),
    "overlapping strides": (program(FLOATS, shape=(2,), stride=(0,)), {"data/0": bytes(8)}, "stride"),
    "floats for numbers": (program(FLOATS, shape=(2.0,)), {"data/0": bytes(8)}, "natural numbers"),
    "unknown reference": (program(("file", "x")), {}, "something else than a storage"),
    "negative storage": (program((*FLOATS[:4], -2)), {"data/0": bytes(8)}, "unknown type or size"),
    "big endian": (program(FLOATS), {"data/0": bytes(8), "byteorder": b"big"}, "big-endian"),
    "two programs": (program(FLOATS), {"data/0": bytes(8), "x/data.pkl": b""}, "2 entries data.pkl"),
    "torn program": (program(FLOATS)[:-9], {"data/0": bytes(8)}, "refused"),
    "empty program": (b"", {}, "refused"),
    "huge memo index": (b"\x80\x02}r\xff\xff\xff\x7f.", {}, None),
}


@pytest.mark.parametrize("case", LIES)
def test_lies_are_named(tmp_path: Path, case: str) -> None:
    content, entries, message = LIES[case]
    path = archive(tmp_path / "m.bin", content, entries)
    if message is None:
        assert read_torch(path) == []  # and no gigabytes were taken for it
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        read_torch(path)
    assert str(path) in str(caught.value)


def test_compressed_and_duplicate_entries_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.bin", program(FLOATS), {"data/0": bytes(8)}, compress=True)
    with pytest.raises(CheckpointError, match="compressed or encrypted"):
        read_torch(path)
    path = archive(tmp_path / "n.bin", program(FLOATS), {"data/0": bytes(8)})
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data/0", bytes(8))
    with pytest.raises(CheckpointError, match="stands there twice"):
        read_torch(path)


def test_random_damage_is_an_error_or_harmless(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(40), "v": torch.ones(3, 3).half()}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    rng, refused = random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "damaged").write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        try:
            for entry in read_torch(tmp_path / "damaged"):
                assert entry.offset + entry.stored_nbytes <= len(damaged)
        except BaizeError:
            refused += 1
    assert refused > 100
