"""What does not belong together is refused with a reason, and nothing is written."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from published_xor import EXTRA, publish_by_file, publish_by_key, run

from baize_engine.errors import CheckpointError, MismatchError


# what is done to base or payload, and what is told; nothing is written
def lack_a_shard(base: Path, payload: Path) -> None:
    (base / "pytorch_model-00002-of-00002.bin").unlink()


def meta_in_place_of_the_base(base: Path, payload: Path) -> None:
    for path in base.iterdir():
        path.unlink()
    (base / "params.json").write_text("{}")


def another_config(base: Path, payload: Path) -> None:
    (base / "config.json").write_text("  " + (base / "config.json").read_text())


def another_converter(base: Path, payload: Path) -> None:
    path = base / "pytorch_model-00001-of-00002.bin"
    path.write_bytes(b"\x80\2" + path.read_bytes())


def other_weights(base: Path, payload: Path) -> None:
    path = base / "pytorch_model-00001-of-00002.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def a_safetensors_base(base: Path, payload: Path) -> None:
    path = base / "pytorch_model-00001-of-00002.bin"
    path.rename(base / "model.safetensors")


def another_tokenizer(base: Path, payload: Path) -> None:
    (base / "tokenizer.model").write_bytes(b"x" + EXTRA["tokenizer.model"])


def another_size_of_the_base(base: Path, payload: Path) -> None:
    path = base / "pytorch_model-00001-of-00002.bin"
    path.write_bytes(path.read_bytes()[:200])


def lfs_pointer(base: Path, payload: Path) -> None:
    (payload / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def a_folder_inside(base: Path, payload: Path) -> None:
    (payload / "old").mkdir()


def a_link_elsewhere(base: Path, payload: Path) -> None:
    (base.parent / "secret").write_text("mine")
    (payload / "config.json").unlink()
    (payload / "config.json").symlink_to(base.parent / "secret")


def a_base_link_elsewhere(base: Path, payload: Path) -> None:
    (base / "config.json").rename(base.parent / "config")
    (base / "config.json").symlink_to(base.parent / "config")


def a_pipe(base: Path, payload: Path) -> None:
    (payload / "config.json").unlink()
    os.mkfifo(payload / "config.json")


def cut_gzip(base: Path, payload: Path) -> None:
    content = gzip.compress((payload / "special_tokens_map.json").read_bytes())
    (payload / "special_tokens_map.json").write_bytes(content[:-3])


def broken_gzip(base: Path, payload: Path) -> None:
    content = bytearray(gzip.compress((payload / "tokenizer_config.json").read_bytes()))
    content[-6] ^= 1
    (payload / "tokenizer_config.json").write_bytes(content)


def something_after_gzip(base: Path, payload: Path) -> None:
    content = gzip.compress((payload / "special_tokens_map.json").read_bytes())
    (payload / "special_tokens_map.json").write_bytes(content + b"and more")


def partial_name(base: Path, payload: Path) -> None:
    for folder in (base, payload):
        (folder / "config.json.partial").write_bytes(b"\0")


def strange_name(base: Path, payload: Path) -> None:
    for folder in (base, payload):
        (folder / "con\nfig").write_bytes(b"\0")


D04EC99 = r"d04ec99bec8a0b432fc03ed60cea9a1a20ebaf3c with torch 1\.13\.1"


REFUSALS = {
    lack_a_shard: r"lacks 1 of the files of .*payload, such as pytorch_model-00002-of-00002.bin \(it has",
    meta_in_place_of_the_base: r"lacks 7 of the files of .*Meta's original layout, which must be converted first",
    another_config: r"config.json with .*base/config.json makes a config.json that begins with .*not JSON.*" + D04EC99,
    another_converter: r"makes a pytorch_model-00001-of-00002.bin that begins with .*wanted 'PK'.*" + D04EC99,
    a_safetensors_base: "lacks 1 of the files",
    other_weights: r"the CRC-32 of .*/data/\d+ is [0-9a-f]{8}, not [0-9a-f]{8}\): the base's bytes are not those",
    another_tokenizer: "makes a tokenizer.model that begins with .*no sentencepiece model",
    another_size_of_the_base: r"00001-of-00002.bin that is not a whole archive of torch.save \(.*" + D04EC99,
    lfs_pointer: "payload/config.json is a Git-LFS pointer",
    a_folder_inside: "payload holds the folder old, wanted files only",
    a_link_elsewhere: "payload/config.json is a link to .*secret, outside its folder",
    a_base_link_elsewhere: "base/config.json is a link to .*, outside its folder",
    a_pipe: "payload/config.json is a folder or device",
    cut_gzip: "special_tokens_map.json: the gzip data are incomplete",
    broken_gzip: "tokenizer_config.json: byte .* not gzip data",
    something_after_gzip: "special_tokens_map.json: byte .* not gzip data",
    partial_name: "a file of the result would be called 'config.json.partial'",
    strange_name: r"would be called 'con\\\\nfig'",
}


def test_a_model_in_place_of_the_payload(base: Path, tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MismatchError, match=r"tuned/config.json is a complete config.json, not an XOR file: wanted the published"
    ):
        run(base, tuned, tmp_path / "out")


@pytest.mark.parametrize("change", REFUSALS, ids=lambda change: change.__name__)
def test_what_does_not_belong_together_is_told(base: Path, tuned: Path, tmp_path: Path, change: object) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    change(base, payload)  # type: ignore[operator]
    with pytest.raises((MismatchError, CheckpointError), match=REFUSALS[change]) as raised:  # type: ignore[index]
        run(base, payload, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_the_wrong_key(tuned: Path, key: Path, tmp_path: Path) -> None:
    payload = publish_by_key(tuned, (key / "consolidated.00.pth").read_bytes(), tmp_path / "payload")
    whole = key / "consolidated.00.pth"
    whole.write_bytes(whole.read_bytes()[:-1] + b"?")  # shows only behind the first turn of the key
    with pytest.raises(MismatchError, match=r"has the SHA-256 .* of its header: the key is not the file"):
        run(key, payload, tmp_path / "out")
    whole.write_bytes(b"?" * 1000)
    with pytest.raises(MismatchError, match=r"begins with .*consolidated\.00\.pth of the same size as the finetune"):
        run(key, payload, tmp_path / "out")
    whole.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty"):
        run(key, payload, tmp_path / "out")
    whole.unlink()
    with pytest.raises(MismatchError, match=r"meta has no consolidated\.00\.pth: the key"):
        run(key, payload, tmp_path / "out")
    assert not (tmp_path / "out").exists()
