"""Archives: what the standard library reads of them, and damaged ones, made up by hypothesis."""

from __future__ import annotations

import io
import warnings
import zipfile

from hypothesis import example, given
from hypothesis import strategies as st
from made_up import few, names

from baize_engine.checkpoint.zip_directory import ZipError, read_directory


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
