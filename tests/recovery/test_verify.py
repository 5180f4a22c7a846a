"""verify notices every kind of change to a recovered folder, and only changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from baize_engine import quantize, recover, verify
from baize_engine.checkpoint.index import read_index
from baize_engine.errors import CheckpointError, OutputError


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    base, diff = tiny.write_pair(tmp_path)
    recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    return tmp_path / "tuned"


def test_an_untouched_folder_is_as_written(tuned: Path) -> None:
    report = verify(tuned)
    assert report.ok
    assert report.tensors == len(read_index(tuned).entries)


def test_one_bit_is_noticed_and_named(tuned: Path) -> None:
    entry = read_index(tuned).entries["model.layers.1.mlp.up_proj.weight"]
    content = bytearray(entry.path.read_bytes())
    content[entry.offset + 77] ^= 1
    entry.path.write_bytes(content)
    report = verify(tuned)
    assert len(report.problems) == 1
    assert "model.layers.1.mlp.up_proj.weight in model.safetensors: SHA-256 is" in report.problems[0]


def test_a_changed_config_is_noticed(tuned: Path) -> None:
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    assert verify(tuned).problems == ("config.json is not the file that was written",)


def test_missing_and_extra_tensors_are_named(tuned: Path) -> None:
    path = tuned / "baize_manifest.json"
    raw = json.loads(path.read_text())
    raw["tensors"]["ghost"] = raw["tensors"].pop("model.norm.weight")
    path.write_text(json.dumps(raw))
    assert verify(tuned).problems == (
        "ghost is in the manifest but not in the weights",
        "model.norm.weight is in the weights but not in the manifest",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is absent"),
        ("{", "not JSON"),
        ("{}", "not a manifest"),
        ('{"format": "baize_manifest", "version": 99}', "version 99, wanted 1"),
        ('{"format": "baize_manifest", "version": 1, "operation": "recover"}', "damaged"),
    ],
)
def test_a_bad_manifest_is_an_error(tuned: Path, content: str | None, message: str) -> None:
    path = tuned / "baize_manifest.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        verify(tuned)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantised_model_is_refused_by_name_and_can_be_compared(tuned: Path, tmp_path: Path, kind: str) -> None:
    first, second = (quantize(tuned, tmp_path / name, kind).folder for name in ("first", "second"))
    with pytest.raises(
        CheckpointError, match=f"^{first} was written by baize quantize, which records no sums.*verify the model"
    ):
        verify(first)
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {
        path.name: path.read_bytes() for path in second.iterdir()
    }


def test_a_config_that_cannot_be_read_hides_no_missing_manifest(tuned: Path) -> None:
    (tuned / "baize_manifest.json").unlink()
    (tuned / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match="only folders written by recover, make_diff or xor can be verified"):
        verify(tuned)


def test_a_file_is_no_result(tuned: Path) -> None:
    for name in ("model.safetensors", "baize_manifest.json"):
        with pytest.raises(
            CheckpointError, match=f"{name} is a file, wanted a folder that recover, make_diff or xor wrote"
        ):
            verify(tuned / name)


def test_a_folder_that_may_not_be_entered(tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exists = Path.exists

    def refused(self: Path, **how: bool) -> bool:
        if self.parent == tmp_path / "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return exists(self, **how)

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(Path, "exists", refused)
    with pytest.raises(CheckpointError, match=r"closed cannot be read \(Permission denied\)"):
        verify(tmp_path / "closed")
    with pytest.raises(OutputError, match=r"closed cannot be looked into \(Permission denied\)"):
        recover(tmp_path / "base", tmp_path / "diff", tmp_path / "closed", device="cpu", progress=False, resume=True)
