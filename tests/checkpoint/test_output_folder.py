"""The folder of a result: what must not lie there, and the space that it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from baize_engine.checkpoint.output_folder import check_output
from baize_engine.checkpoint.writer import CheckpointWriter, TensorSpec, lay_out
from baize_engine.errors import OutputError

SPECS = [
    TensorSpec("norm", "float16", (10,)),
    TensorSpec("big", "float16", (64, 64)),
    TensorSpec("empty", "float32", (0, 4)),
    TensorSpec("other", "bfloat16", (3, 5)),
]


@pytest.mark.parametrize(
    ("entry", "message"), [("notes.txt", "is not empty"), ("model.safetensors.partial", "unfinished")]
)
def test_a_folder_with_content_is_refused_untouched(tmp_path: Path, entry: str, message: str) -> None:
    (tmp_path / entry).write_text("mine")
    with pytest.raises(OutputError, match=message), CheckpointWriter(tmp_path, lay_out(SPECS)):
        pass
    assert (tmp_path / entry).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="not a folder"):
        check_output(tmp_path / "out", 1)


def test_too_little_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"1000000000\.00 GB are needed"):
        check_output(tmp_path / "out", 10**18)
    assert list(tmp_path.iterdir()) == []
