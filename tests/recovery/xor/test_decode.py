"""The bytes of a result: keys that repeat, sides of other lengths, gzip data that are whole, damaged or too long."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import pytest
from published_xor import KEY_BLOCK, codec, files, keyed, publish_by_file, publish_by_key, result, run

from baize_engine.errors import CheckpointError, OutputError


@pytest.mark.parametrize(
    ("length", "key_length"),
    [
        (3 * KEY_BLOCK + 7, KEY_BLOCK + 3),  # the key's last block of 3 bytes fills 10 MiB before the key begins again
        (2 * KEY_BLOCK + 5, KEY_BLOCK),
        (KEY_BLOCK + 1, 1),
        (100, 5 << 20),
        (0, 10),
        ((2 << 20) - 32, 4099),
    ],
)
def test_how_a_key_goes_on(tmp_path: Path, length: int, key_length: int) -> None:
    rng = random.Random(length)
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned/data").write_bytes(rng.randbytes(length))
    content = rng.randbytes(key_length)
    (tmp_path / "key").write_bytes(content)
    run(tmp_path / "key", publish_by_key(tmp_path / "tuned", content, tmp_path / "payload"), tmp_path / "out")
    assert result(tmp_path / "out") == files(tmp_path / "tuned")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("length", "base_length"), [(0, 0), (0, 9), (9, 0), (5_000_001, 4_999_999), (2 << 20, 5_000_000), (4096, 1), (1, 1)]
)
def test_longer_and_shorter_sides(tmp_path: Path, length: int, base_length: int, packed: bool) -> None:
    rng = random.Random(length)
    for folder, size in (("tuned", length), ("base", base_length)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data").write_bytes(rng.randbytes(size))
    payload = publish_by_file(tmp_path / "tuned", tmp_path / "base", tmp_path / "payload", packed)
    run(tmp_path / "base", payload, tmp_path / "out")
    assert result(tmp_path / "out") == files(tmp_path / "tuned")


def test_gzip_members_and_the_zeros_after(tmp_path: Path) -> None:
    content, other = random.Random(1).randbytes(700_000), random.Random(2).randbytes(700_000)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/data").write_bytes(other)
    (tmp_path / "payload").mkdir()
    wanted = codec(content, other)
    parts = [wanted[:300_000], b"", wanted[300_000:]]
    (tmp_path / "payload/data").write_bytes(b"".join(map(gzip.compress, parts)) + bytes(1000))
    run(tmp_path / "base", tmp_path / "payload", tmp_path / "out")
    assert result(tmp_path / "out") == {"data": content}


def test_damaged_gzip_data_are_read_as_the_library_reads_them_or_refused(tmp_path: Path) -> None:
    rng = random.Random(3)
    for folder in ("base", "payload"):
        (tmp_path / folder).mkdir()
    other = rng.randbytes(3000)
    (tmp_path / "base/data").write_bytes(other)
    good = gzip.compress(bytes(2000) + rng.randbytes(100)) + gzip.compress(rng.randbytes(50)) + bytes(9)
    outcomes = {"read": 0, "refused": 0}
    for case in range(300):
        content = bytearray(good)
        for _ in range(rng.choice((0, 1, 1, 2))):
            at = rng.randrange(3, len(content))
            how = rng.randrange(4)
            if how == 0:
                content[at] ^= 1 << rng.randrange(8)
            elif how == 1:
                del content[at:]
            elif how == 2:
                content[at:at] = rng.randbytes(3)
            else:
                content += content[:at]
        (tmp_path / "payload/data").write_bytes(content)
        try:
            run(tmp_path / "base", tmp_path / "payload", tmp_path / f"out{case}")
        except CheckpointError as error:
            outcomes[str(error).split(":")[0]] = 0
            assert not (tmp_path / f"out{case}").exists()
            outcomes["refused"] += 1
            continue
        assert result(tmp_path / f"out{case}") == {"data": codec(gzip.decompress(content), other)}
        outcomes["read"] += 1
    assert outcomes.keys() == {"read", "refused", str(tmp_path / "payload/data")}
    assert min(outcomes["read"], outcomes["refused"]) > 50


def test_bombs(base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    bomb = payload / "pytorch_model-00001-of-00002.bin"
    bomb.write_bytes(gzip.compress(bomb.read_bytes()) + gzip.compress(bytes(1 << 20)) * 80)
    with pytest.raises(CheckpointError, match=r"payload/pytorch\S+ unpacks to more than \d+ bytes, but .* has \d+"):
        run(base, payload, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    usual = os.statvfs(tmp_path)
    nearly_full = os.statvfs_result([(63 << 20) // usual.f_frsize if n == 4 else v for n, v in enumerate(usual)])
    monkeypatch.setattr(os, "statvfs", lambda path: nearly_full)
    with pytest.raises(
        OutputError, match=r"pytorch\S+: while .* was being unpacked, the disk had 63 MiB free, wanted at least 64"
    ):
        run(base, payload, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_reference_of_these_tests_is_the_scripts(tmp_path: Path) -> None:
    """By hand: 0b1100 ^ 0b1010, a base that is shorter, and one that is longer."""
    assert codec(b"\x0c\x01", b"\x0a") == b"\x06\x01"
    assert codec(b"\x0c", b"\x0a\xff") == b"\x06"
    assert keyed(b"\1\2\3\4\5", b"\1\1\0") == b"\0\3\3\5\4"
