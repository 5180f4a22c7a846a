"""What files of a model begin with, by their names, and a payload and a base that were swapped."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import pytest
import torch

from baize_engine.errors import MismatchError
from baize_engine.recovery.xor.file_types import are_swapped, check_whole, why_not
from baize_engine.recovery.xor.job import XorJob

SAFETENSORS = struct.pack("<Q", 2) + b"{}"
RIGHT = {
    "config.json": b'\xef\xbb\xbf \n{"a": 1}',
    "added_tokens.json": b"[1]",
    "pytorch_model.bin": b"PK\x03\x04rest",
    "consolidated.00.pth": b"PK\x03\x04",
    "model.safetensors": SAFETENSORS,
    "tokenizer.model": b"\n\x0e\n\x05",
}


@pytest.mark.parametrize("name", RIGHT)
def test_heads_are_what_the_names_say(name: str) -> None:
    assert why_not(name, RIGHT[name]) == ""
    assert why_not(name, bytes(16))  # what XORing equal files gives
    assert why_not("LICENSE", RIGHT[name]) == ""  # which may begin with anything


@pytest.mark.parametrize(
    ("name", "head", "told"),
    [
        ("config.json", b'"text"', "which is not JSON"),
        ("config.json", b'{"a": \x01}', "and its byte 6 is 1, which is not JSON"),
        ("model.safetensors", struct.pack("<Q", 1 << 27) + b"{", "which is no header of safetensors"),
        ("pytorch_model.bin", b"\x80\x02", "wanted 'PK', as torch.save writes it"),
        ("tokenizer.model", b"", "which is no sentencepiece model"),
    ],
)
def test_other_heads_are_named(name: str, head: bytes, told: str) -> None:
    assert why_not(name, head) == told


def test_swapped_files_are_told_from_damaged_ones() -> None:
    model, zeros = RIGHT["config.json"], bytes(16)
    assert are_swapped("config.json", payload=model, base=zeros)
    assert not are_swapped("config.json", payload=zeros, base=model)
    assert not are_swapped("config.json", payload=model, base=model)
    assert not are_swapped("config.json", payload=zeros, base=zeros)
    assert not are_swapped("config.json", payload=model, base=b"")


def job(name: str, folder: Path) -> XorJob:
    return XorJob(name, folder / "payload", 1, 0, folder / "base", 1)


def test_whole_json_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "result"
    path.write_text(json.dumps({"a": [1, 2]}))
    assert check_whole(job("config.json", tmp_path), path, True, lambda: None) is False
    path.write_text('{"a": [1, 2')
    with pytest.raises(MismatchError, match="is not JSON"):
        check_whole(job("config.json", tmp_path), path, True, lambda: None)


def test_the_checksums_of_an_archive_reveal_one_wrong_bit(tmp_path: Path) -> None:
    made, path, calls = io.BytesIO(), tmp_path / "result", []
    weight = torch.full((500,), 1.5)
    torch.save({"w": weight}, made)
    content = bytearray(made.getvalue())
    path.write_bytes(content)
    shard = job("pytorch_model.bin", tmp_path)
    assert check_whole(shard, path, True, lambda: calls.append(1)) is True
    assert calls  # before each block
    assert check_whole(shard, path, False, lambda: None) is False
    content[content.index(weight.numpy().tobytes()) + 1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(MismatchError, match=r"the CRC-32 of .*data/0 is [0-9a-f]{8}, not [0-9a-f]{8}"):
        check_whole(shard, path, True, lambda: None)
    assert check_whole(shard, path, False, lambda: None) is False  # nobody asked
    path.write_bytes(content[:-30])
    with pytest.raises(MismatchError, match=r"is not a whole archive of torch\.save"):
        check_whole(shard, path, False, lambda: None)
