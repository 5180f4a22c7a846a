"""Properties of the readers of strangers' files, over inputs that hypothesis makes up; other readers are the oracles."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="the extra test has it")

from hypothesis import given
from hypothesis import strategies as st
from made_up import dtypes, few, json_values, names, shapes

from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.safetensors_file import encode_header, read_safetensors
from baize_engine.checkpoint.torch_file import read_torch
from baize_engine.errors import CheckpointError


@few
@given(st.dictionaries(names.filter(lambda name: name != "__metadata__"), st.tuples(dtypes, shapes), max_size=6))
def test_every_header_that_is_written_is_read(tmp_path: Path, tensors: dict) -> None:
    table, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        table[name] = (dtype, shape, end, end + prod(shape) * ITEMSIZE[dtype])
        end = table[name][3]
    header = encode_header(table, {"format": "pt"}, 64)
    (tmp_path / "m").write_bytes(header + bytes(end))
    found = {entry.name: (entry.stored_dtype, entry.shape, entry.offset) for entry in read_safetensors(tmp_path / "m")}
    assert found == {name: (t[0], t[1], len(header) + t[2]) for name, t in table.items()}


described = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "F13"]) | json_values,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-4, 40), max_size=3) | json_values,
    }
)


@few
@given(st.dictionaries(names, described | json_values, max_size=4), st.integers(0, 40), st.binary(max_size=3))
def test_a_header_is_refused_or_covers_its_file(tmp_path: Path, header: dict, data: int, more: bytes) -> None:
    text = json.dumps(header).encode("utf-8", "surrogatepass") + more
    (tmp_path / "m").write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    try:
        entries = read_safetensors(tmp_path / "m")
    except CheckpointError as refused:
        told = str(refused)
        entries = None
    if entries is None:
        assert told.startswith(str(tmp_path / "m"))
        return
    assert sum(entry.nbytes for entry in entries) == data
    assert {entry.name for entry in entries} == header.keys() - {"__metadata__"}


@few
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_by_name_or_read(tmp_path: Path, content: bytes) -> None:
    for read, beginning in ((read_safetensors, b""), (read_torch, b"PK")):
        (tmp_path / "m").write_bytes(beginning + content)
        told, entries = str(tmp_path / "m"), []
        try:
            entries = read(tmp_path / "m")
        except CheckpointError as refused:
            told = str(refused)
        assert str(tmp_path / "m") in told
        assert all(entry.offset + entry.nbytes <= len(content) + 2 for entry in entries)
