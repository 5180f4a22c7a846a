"""Properties of the readers of strangers' files, over inputs that hypothesis makes up; other readers are the oracles."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from math import prod
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="the extra test has it")

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from baize_engine.checkpoint import strict_json
from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.entry import MAX_NAME
from baize_engine.checkpoint.manifest import MANIFEST_NAME, Manifest, SourceFile, TensorRecord, read_manifest
from baize_engine.checkpoint.pickle_program import run
from baize_engine.checkpoint.pickle_values import ProgramError
from baize_engine.checkpoint.safetensors_file import encode_header, read_safetensors
from baize_engine.checkpoint.torch_file import read_torch
from baize_engine.checkpoint.zip_directory import ZipError, read_directory
from baize_engine.errors import CheckpointError
from baize_engine.printable import MOST, brief, shown

few = settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
dtypes = st.sampled_from(sorted(ITEMSIZE))
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
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


@few
@given(json_values)
def test_strict_json_is_json(value: object) -> None:
    text = json.dumps(value).encode()
    try:
        assert strict_json.parse(text, "it") == value
    except CheckpointError:
        assert not isinstance(value, dict) or b"NaN" in text or b"Infinity" in text


@few
@given(json_values)
def test_settings_are_read_as_json_reads_them(tmp_path: Path, value: object) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"it": value}))
    assert repr(strict_json.read_settings(path)) == repr(json.loads(path.read_text()))  # nan is not equal to itself


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=8) | st.integers(0, 99), inner, max_size=4)
    ),
    max_leaves=20,
)


@few
@given(plain, st.integers(2, 4))
def test_plain_values_come_out_as_pythons_machine_has_them(value: object, protocol: int) -> None:
    program = pickle.dumps(value, protocol)
    assert run(program) == pickle.loads(program) == value


@few
@given(plain, st.integers(2, 4), st.data())
def test_a_damaged_program_is_refused_or_makes_a_value(value: object, protocol: int, data: st.DataObject) -> None:
    program = bytearray(pickle.dumps({"w": value, "o": OrderedDict(a=1)}, protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    told, found = "", None
    try:
        found = run(bytes(program))
    except ProgramError as refused:
        told = str(refused)
    assert len(told) < 1000
    ours = type(found).__module__ == "baize_engine.checkpoint.pickle_values"
    assert found is None or ours or callable(found) or isinstance(found, str | int | float | tuple | list | dict)


@few
@given(st.dictionaries(names, st.binary(max_size=40), max_size=6), st.booleans())
def test_archives_are_read_as_the_standard_library_does(entries: dict, big: bool) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=big) as entry:
                entry.write(content)
    members = read_directory(file, len(file.getvalue()))
    stored = file.getvalue()
    found = {name: stored[m.locate(file) : m.locate(file) + m.size] for name, m in members.items()}
    assert {name.decode(): content for name, content in found.items()} == entries


@few
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
@example([(0, 0)])
def test_a_damaged_archive_is_refused_or_read_alike(changes: list) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", b"program")
        archive.writestr("m/data/0", bytes(16))
    content = bytearray(file.getvalue())
    for at, value in changes:
        content[at % len(content)] = value
    damaged = io.BytesIO(bytes(content))
    try:
        members = read_directory(damaged, len(content))
        places = {name: (member.locate(damaged), member.size) for name, member in members.items()}
    except ZipError:
        return
    assert all(begin + size <= len(content) for begin, size in places.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with zipfile.ZipFile(damaged) as archive:
                infos = archive.infolist()
        except NotImplementedError:  # it heeds the version, which is of no use
            return
    theirs = {info.orig_filename.encode(): info.file_size for info in infos if info.orig_filename.isascii()}
    assert {name: size for name, (_, size) in places.items() if name.isascii()} == theirs


@few
@given(
    st.dictionaries(
        names,
        st.builds(
            TensorRecord, dtypes, shapes, st.text(max_size=9), st.none() | st.floats(allow_nan=False, allow_infinity=False),
            st.integers(0, 1 << 60), st.integers(0, 1 << 60),
        ),
        max_size=4,
    ),
    st.builds(SourceFile, names, st.integers(0, 1 << 60), st.integers(0, 1 << 62), st.none() | st.text(max_size=9)),
)  # fmt: skip
def test_manifests_come_back(tmp_path: Path, tensors: dict, source: SourceFile) -> None:
    manifest = Manifest("recover", "x", {"a": "b"}, {"base": [source]}, tensors, {"config.json": "00"})
    (tmp_path / MANIFEST_NAME).write_bytes(manifest.encode())
    assert read_manifest(tmp_path) == manifest


@few
@given(st.text(max_size=2 * MOST), plain)
def test_messages_stay_short_and_printable(text: str, value: object) -> None:
    assert shown(text).isprintable()
    assert len(shown(text)) <= 10 * MOST
    assert len(brief(value)) <= 4 * MOST
    assert shown("model.norm.weight") == "model.norm.weight"
    assert MAX_NAME > MOST
