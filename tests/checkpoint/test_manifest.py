"""A manifest that is written is read back, whatever its names and sums."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from made_up import dtypes, few, names, shapes

from baize_engine.checkpoint.manifest import MANIFEST_NAME, Manifest, SourceFile, TensorRecord, read_manifest


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
