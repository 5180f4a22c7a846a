"""The safetensors reader believes nothing; what the writer's header says, the safetensors package reads too."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from baize_engine.checkpoint.safetensors_file import encode_header, read_safetensors
from baize_engine.errors import BaizeError, CheckpointError

GOOD = {
    "a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
    "b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]},
}


def write(path: Path, header: object, data: bytes = bytes(16), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def changed(**changes: object) -> dict:
    return {**GOOD, "a": {**GOOD["a"], **changes}}


def test_every_tensor_lies_where_it_is_said(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    tensors = {
        "half": torch.randn(3, 5, generator=g).half(),
        "brain": torch.randn(7, generator=g).bfloat16(),
        "single": torch.randn(2, 2, 2, generator=g),
        "whole": torch.arange(9),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(3.0),
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    content = (tmp_path / "m.safetensors").read_bytes()
    found = {entry.name: entry for entry in read_safetensors(tmp_path / "m.safetensors")}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        entry = found[name]
        assert (entry.dtype, entry.shape) == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        stored = content[entry.offset : entry.offset + entry.nbytes]
        assert stored == (tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")


def test_headers_are_padded_and_read_back(tmp_path: Path) -> None:
    header = encode_header({"ü": ("bfloat16", (2, 2), 0, 8), "e": ("float32", (0,), 8, 8)}, {"format": "pt"}, 4096)
    assert len(header) == 4096
    (tmp_path / "m.safetensors").write_bytes(header + bytes(range(8)))
    assert {name: tuple(t.shape) for name, t in load_file(tmp_path / "m.safetensors").items()} == {
        "ü": (2, 2),
        "e": (0,),
    }


BAD = {
    "header longer than the file": (GOOD, bytes(16), 10_000, "claims 10000 bytes"),
    "header beyond all bounds": (GOOD, bytes(16), 1 << 63, "claims 9223372036854775808 bytes"),
    "not json": (b"{", bytes(16), None, "not JSON"),
    "deep nesting": (b"[" * 100_000, b"", None, "not JSON"),
    "a list": ([], b"", None, "a list, wanted a JSON object"),
    "duplicate key": (
        b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":{}}',
        bytes(4),
        None,
        "'a' appears twice",
    ),
    "unknown type": (changed(dtype="F13"), bytes(16), None, "a: dtype 'F13'"),
    "negative shape": (changed(shape=[-2, -3]), bytes(16), None, r"a: shape \[-2, -3\]"),
    "shape is a number": (changed(shape=3), bytes(16), None, "a: shape 3 is not a list of at most 16 natural numbers"),
    "shape of floats": (changed(shape=[2.0, 3]), bytes(16), None, "a: shape"),
    "shape of booleans": (changed(shape=[True, 6]), bytes(16), None, "a: shape"),
    "shape beyond all bounds": (changed(shape=[1 << 40, 1 << 40]), bytes(16), None, "a: 12 bytes of data, wanted"),
    "shape of 31 digits": (changed(shape=[10**30]), bytes(16), None, "a: shape"),
    "shape does not fit": (changed(shape=[2, 4]), bytes(16), None, "a: 12 bytes of data, wanted 16"),
    "offsets backwards": (changed(data_offsets=[12, 0]), bytes(16), None, "a: data_offsets"),
    "offsets of one": (changed(data_offsets=[0]), bytes(16), None, "a: data_offsets"),
    "missing field": ({"a": {"dtype": "F16", "shape": []}}, b"", None, "a: wanted an object of"),
    "not an object": ({"a": 7}, b"", None, "a: wanted an object"),
    "overlap": ({**GOOD, "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}, bytes(12), None, "overlaps"),
    "hole": ({**GOOD, "b": {"dtype": "F32", "shape": [1], "data_offsets": [16, 20]}}, bytes(20), None, "leaves a hole"),
    "begins late": ({"b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8), None, "leaves a hole"),
    "cut short": (GOOD, bytes(15), None, "wanted the file's end"),
    "too long": (GOOD, bytes(17), None, "wanted the file's end"),
    "metadata is a list": ({"__metadata__": [], **GOOD}, bytes(16), None, "__metadata__"),
}


@pytest.mark.parametrize("case", BAD)
def test_lies_are_named(tmp_path: Path, case: str) -> None:
    header, data, length, message = BAD[case]
    path = write(tmp_path / "m.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_safetensors(path)
    assert str(path) in str(caught.value)


def test_a_header_longer_than_is_read_is_told_from_one_that_is_cut(tmp_path: Path) -> None:
    text = json.dumps(GOOD).encode().ljust((8 << 20) + 1)  # spaces, as the format allows
    path = write(tmp_path / "m.safetensors", text)
    assert len(load_file(path)) == 2
    with pytest.raises(
        CheckpointError, match="its header has 8388609 bytes, wanted at most 8388608: more than any LLaMA"
    ):
        read_safetensors(path)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "0 bytes"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")]
)
def test_what_is_no_such_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_safetensors(tmp_path / "m.safetensors")


def test_random_damage_is_an_error_or_harmless(tmp_path: Path) -> None:
    rng = random.Random(0)
    whole = write(tmp_path / "whole", GOOD).read_bytes()
    refused = 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged) - 16)] = rng.randrange(256)
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            for entry in read_safetensors(tmp_path / "damaged"):
                assert entry.offset + entry.nbytes <= len(damaged)
        except BaizeError:
            refused += 1
    assert refused > 1000
