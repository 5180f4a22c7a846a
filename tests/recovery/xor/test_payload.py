"""What a payload is made of: names, links, hub ids, and folders that were swapped."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path, PurePath
from types import ModuleType

import pytest
from published_xor import files, publish_by_file, publish_by_key, result, run

from baize_engine import Engine, recover, xor
from baize_engine.checkpoint import hub
from baize_engine.errors import BaizeError, CheckpointError, MismatchError
from baize_engine.recovery.xor.payload import is_payload


def test_links_elsewhere_are_followed_if_that_is_asked_for(base: Path, tuned: Path, tmp_path: Path) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    for folder in (base, payload):
        for path in list(folder.iterdir()):
            path.rename(tmp_path / f"{folder.name}-{path.name}")
            path.symlink_to(tmp_path / f"{folder.name}-{path.name}")
    with pytest.raises(CheckpointError, match=r"outside its folder.*--follow_links"):
        run(base, payload, tmp_path / "out")
    run(base, payload, tmp_path / "out", follow_links=True)
    assert result(tmp_path / "out") == files(tuned)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


SWAPPED = r"were path_raw and path_payload swapped\?$"


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("lacking", [True, False], ids=["more in the base", "the same files"])
def test_base_and_payload_swapped(base: Path, tuned: Path, tmp_path: Path, packed: bool, lacking: bool) -> None:
    """XOR goes both ways: files of one length would come out right, and others cut."""
    repository = publish_by_file(tuned, base, tmp_path / "repository/xor", packed).parent
    (repository / "README.md").write_text("# the card")
    if not lacking:
        (base / "tokenizer.json").unlink()
    for given in (repository / "xor", repository) if lacking else (repository / "xor",):
        with pytest.raises(
            MismatchError,
            match=r"base/config\.json is a complete config\.json, but .*xor/config\.json, of the base.*" + SWAPPED,
        ):
            run(given, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["", "oasst-xor"], ids=["folder", "repository"])
@pytest.mark.parametrize("kind", ["by file", "gzip", "by key"])
def test_recover_of_xor_files_names_xor(
    base: Path, tuned: Path, key: Path, tmp_path: Path, kind: str, below: str
) -> None:
    out = tmp_path / "payload"
    if kind == "by key":
        publish_by_key(tuned, (key / "consolidated.00.pth").read_bytes(), out / below)
    else:
        publish_by_file(tuned, base, out / below, packed=kind == "gzip")
    if below:
        (out / "README.md").write_text("# the card")
    wanted = rf"{out} holds XOR files, not a weight diff: baize xor --path_raw BASE --path_payload {out} "
    with pytest.raises(CheckpointError, match=wanted):
        recover(base, out, tmp_path / "result", progress=False)
    with pytest.raises(CheckpointError, match=wanted):
        Engine.from_diff(base, out, device="cpu")
    assert not (tmp_path / "result").exists()


def test_encrypted_files_beside_a_config_that_cannot_be_read(tuned: Path, key: Path, tmp_path: Path) -> None:
    payload = publish_by_key(tuned, (key / "consolidated.00.pth").read_bytes(), tmp_path / "payload")
    (payload / "config.json").symlink_to("absent")
    assert is_payload(payload)


BROKEN: dict[str, bytes | None] = {
    "none": None,
    "HTML": b"<!DOCTYPE html><html><title>404</title>",
    "plain text": b"Entry not found",
    "empty": b"",
    "UTF-8 with a byte order mark": b'\xef\xbb\xbf{"hidden_size": 32}',
    "UTF-16": '{"hidden_size": 32}'.encode("utf-16"),
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64,
    "JSON cut short": b'{"hidden_size": ',
    "JSON with a NUL": b'{"hidden_size": \0}',
    "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
}
KINDS = ["folder", "FIFO", "broken link"]


@pytest.mark.parametrize("below", ["", "only"], ids=["folder", "subfolder"])
@pytest.mark.parametrize("config", [*BROKEN, *KINDS])
def test_a_broken_config_is_no_xor(base: Path, tmp_path: Path, config: str, below: str) -> None:
    """Most of these are what a failed download leaves: what is wrong with it is to be said, not another command."""
    folder = tmp_path / "diff" / below
    folder.mkdir(parents=True)
    path = folder / "config.json"
    if config == "folder":
        path.mkdir()
    elif config == "FIFO":
        os.mkfifo(path)
    elif config == "broken link":
        path.symlink_to("absent")
    elif (content := BROKEN[config]) is not None:
        path.write_bytes(content)
    assert not is_payload(tmp_path / "diff")
    with pytest.raises(CheckpointError) as refused:
        recover(base, tmp_path / "diff", tmp_path / "result", progress=False)
    assert "XOR" not in str(refused.value)
    assert not (tmp_path / "result").exists()


def test_a_folder_among_others_is_not_looked_into(base: Path, tuned: Path, tmp_path: Path) -> None:
    """As `xor` does not: the payload has to be named."""
    publish_by_file(tuned, base, tmp_path / "repository/xor")
    assert is_payload(tmp_path / "repository")
    (tmp_path / "repository/other").mkdir()
    assert not is_payload(tmp_path / "repository")
    assert not is_payload(tmp_path / "repository/absent")
    assert not is_payload(tmp_path / "repository/xor/config.json")


@pytest.mark.parametrize("path_payload", ["meta", "meta/consolidated.00.pth"])
def test_key_and_payload_swapped(tuned: Path, key: Path, tmp_path: Path, path_payload: str) -> None:
    payload = publish_by_key(tuned, (key / "consolidated.00.pth").read_bytes(), tmp_path / "payload")
    with pytest.raises(BaizeError, match=r"wanted .*were path_raw and path_payload swapped\?"):
        run(payload, tmp_path / path_payload, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_file_of_the_base_is_no_payload(tmp_path: Path) -> None:
    """What was published is the whole file then."""
    for folder, content in (("base", b""), ("tuned", b'{"a": 1}')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_bytes(content)
    run(
        tmp_path / "base",
        publish_by_file(tmp_path / "tuned", tmp_path / "base", tmp_path / "payload"),
        tmp_path / "out",
    )
    assert result(tmp_path / "out") == files(tmp_path / "tuned")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json.enc", "wanted a name NAME.<64"),
        ("a." + "0" * 64 + ".enc", "does not begin with the SHA-256 that its name says"),
        ("a.partial." + hashlib.sha256().hexdigest() + ".enc", r"would be called 'a\.partial'"),
        ("\u2028." + hashlib.sha256().hexdigest() + ".enc", "of printable characters"),
        ("baize_manifest.json." + hashlib.sha256().hexdigest() + ".enc", "would be called 'baize_manifest.json'"),
        ("config.json." + hashlib.sha256().hexdigest() + ".enc", "are both config.json"),
    ],
)
def test_hostile_names_with_a_key(tuned: Path, key: Path, tmp_path: Path, name: str, message: str) -> None:
    payload = publish_by_key(tuned, (key / "consolidated.00.pth").read_bytes(), tmp_path / "payload")
    (payload / name).write_bytes(b"?" * 100)
    with pytest.raises(CheckpointError, match=message):
        run(key, payload, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hub_ids(base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OASST's repository is: a card and the script, and a folder with the payload."""
    publish_by_file(tuned, base, tmp_path / "repository/oasst-xor")
    (tmp_path / "repository/README.md").write_text("# the card")
    (tmp_path / "repository/xor_codec.py").write_text("import gzip")
    calls = {}
    module = ModuleType("huggingface_hub")

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        calls[name] = allow_patterns
        return str({"lab/xor": tmp_path / "repository", "meta/llama": base}[name])

    module.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setattr(hub, "find_spec", lambda name: module)
    monkeypatch.chdir(tmp_path)
    xor("meta/llama", "lab/xor", "out", progress=False)
    assert result(tmp_path / "out") == files(tuned)
    assert calls == {"lab/xor": ["*"], "meta/llama": sorted(files(tuned))}


def test_too_many_files_are_counted_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name is sorted into its list once, and not looked for among all others."""
    (tmp_path / "payload").mkdir()
    for number in range(5000):
        (tmp_path / "payload" / f"{number}{'.md' if number % 8 == 0 else ''}").touch()
    compared, equal = [0], PurePath.__eq__

    def counting(self: PurePath, other: object) -> bool:
        compared[0] += 1
        return equal(self, other)

    monkeypatch.setattr(PurePath, "__eq__", counting)
    with pytest.raises(CheckpointError, match="payload holds 4375 files, wanted at most 4096"):
        xor(tmp_path, tmp_path / "payload", tmp_path / "out", progress=False)
    assert compared[0] < 5000
