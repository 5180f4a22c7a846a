"""A hub id in place of a folder: what is asked of huggingface_hub, and its cache when offline. No test uses the network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import tiny
import tiny_meta

from baize_engine import Engine, SamplingParams, recover, verify
from baize_engine.checkpoint import hub
from baize_engine.checkpoint.hub import local_path
from baize_engine.cli import main
from baize_engine.errors import CheckpointError, RequestError


class FakeHub(ModuleType):
    """Stands for huggingface_hub: "fetches" the files of a local folder that match."""

    def __init__(self, repositories: dict[str, Path], root: Path) -> None:
        super().__init__("huggingface_hub")
        self.repositories, self.root, self.calls = repositories, root, []

    def snapshot_download(self, name: str, allow_patterns: list[str]) -> str:
        self.calls.append((name, allow_patterns))
        if name not in self.repositories:
            raise OSError(f"404 for {name}")
        out = self.root / name.replace("/", "--")
        out.mkdir(parents=True, exist_ok=True)
        for path in self.repositories[name].iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns) and not (out / path.name).exists():
                shutil.copy(path, out)
        return str(out)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    base, diff = tiny.write_pair(tmp_path / "far")
    (diff / "training_state.pt").write_bytes(b"large and not wanted")
    single = tiny.write_model(tmp_path / "far" / "single", tiny.config(), tiny.state(tiny.config()), "bin")
    cfg = tiny.config()
    original = tiny_meta.write_meta(tmp_path / "far" / "original", cfg, tiny_meta.random_shards(cfg, 2))
    known = {"meta/base": base, "lab/diff": diff, "lab/single": single, "meta/original": original}
    module = FakeHub(known, tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setattr(hub, "find_spec", lambda name: module)
    monkeypatch.chdir(tmp_path)
    return module


def test_ids_in_place_of_folders(fake: FakeHub, tmp_path: Path) -> None:
    by_id = recover("meta/base", "lab/diff", tmp_path / "one", device="cpu", progress=False)
    by_folder = recover("far/base", "far/diff", tmp_path / "two", device="cpu", progress=False)
    assert by_id.manifest.tensors == by_folder.manifest.tensors
    assert {name for name, _ in fake.calls} == {"meta/base", "lab/diff"}
    fetched = {path.name for path in (tmp_path / "cache" / "lab--diff").iterdir()}
    assert "training_state.pt" not in fetched
    assert sum(name.endswith(".bin") for name in fetched) == 2


def test_one_kind_of_weights_is_fetched(fake: FakeHub, tmp_path: Path) -> None:
    tiny.write_model(tmp_path / "far" / "base", tiny.config(), tiny.state(tiny.config()))  # beside the .bin files
    assert {path.suffix for path in hub.folder_of("meta/base").glob("*model*")} >= {".safetensors"}
    assert not list(hub.folder_of("meta/base").glob("*.bin"))
    assert (hub.folder_of("lab/single") / "pytorch_model.bin").exists()
    assert len(list(hub.folder_of("meta/original").glob("consolidated.*.pth"))) == 2


def test_the_engine_takes_ids_too(fake: FakeHub) -> None:
    params = SamplingParams(max_new_tokens=4, ignore_eos=True)
    with Engine.from_pretrained("lab/single", device="cpu") as engine:
        assert len(engine.generate([1, 5], params)[0].token_ids) == 4
    with Engine.from_diff("meta/original", "lab/diff", device="cpu") as engine:
        assert len(engine.generate([1, 5], params)[0].token_ids) == 4


def test_every_command_that_reads_a_model_takes_ids(
    fake: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["info", "lab/single"]) == 0
    assert "lab--single: " in capsys.readouterr().out
    assert main(["quantize", "--path", "lab/single", "--path_quantized", "int8"]) == 0
    assert list((tmp_path / "int8").glob("*.safetensors"))
    recover("meta/base", "lab/diff", tmp_path / "far" / "tuned", device="cpu", progress=False)
    fake.repositories["lab/tuned"] = tmp_path / "far" / "tuned"
    assert main(["verify", "lab/tuned"]) == 0
    assert "as written" in capsys.readouterr().out
    assert verify("lab/tuned").ok


def test_a_folder_that_exists_comes_first(fake: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "meta" / "base").mkdir(parents=True)
    assert hub.folder_of("meta/base") == Path("meta/base")
    for path in (Path("lab/diff"), "nowhere", "./lab/diff", "/lab/diff", "../x/y", "a/b/c", "lab/diff/", ".hidden/x"):
        assert hub.folder_of(path) == Path(path)
    assert fake.calls == []


def test_what_the_hub_refuses_is_one_clear_error(fake: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"lab/gone is not a folder here, and huggingface_hub could not .*404 for lab/gone"
    ):
        recover("meta/base", "lab/gone", tmp_path / "out", device="cpu", progress=False)
    (tmp_path / "far" / "single" / "pytorch_model.bin").unlink()
    with pytest.raises(
        CheckpointError, match=r"lab/single, in .*, holds no weights: looked for model\.safetensors\.index"
    ):
        hub.folder_of("lab/single")


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"meta/base does not exist; if it is a hub id.*baize-engine\[hub\]"):
        hub.folder_of("meta/base")


@pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed")
def test_the_real_cache_when_offline(tmp_path: Path) -> None:
    """The layout of huggingface_hub's own cache, read by it with the network switched off."""
    _, diff = tiny.write_pair(tmp_path / "far")
    home = tmp_path / "cache" / "models--lab--diff"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("f" * 40)
    (home / "snapshots").mkdir()
    diff.rename(home / "snapshots" / ("f" * 40))
    code = "from baize_engine.checkpoint.hub import folder_of; from baize_engine.checkpoint.index import read_index\n"
    code += "print(len(read_index(folder_of('lab/diff')).entries)); folder_of('lab/other')"
    settings = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **settings}
    )
    assert done.stdout.strip() == "23"
    assert "CheckpointError: lab/other is not a folder here, and huggingface_hub could not fetch it" in done.stderr


def test_the_home_of_nobody_is_no_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = (
        r"~no_such_user/out: there is no home folder ~no_such_user \(./~no_such_user/out names a folder called that\)"
    )
    with pytest.raises(RequestError, match=told):
        local_path("~no_such_user/out")
    assert local_path("./~no_such_user/out") == Path("~no_such_user/out")
    (tmp_path / "~no_such_user").mkdir()
    assert local_path("~no_such_user/out") == Path("~no_such_user/out")
