"""Payloads in the forms that were published, made and undone by a few plain lines: what `xor` is held against."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

from baize_engine import xor
from baize_engine.recovery.xor.xor import XorResult

KEY_BLOCK = 10 * 1024 * 1024
EXTRA = {  # files beside the weights
    "tokenizer.model": b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02",
    "special_tokens_map.json": b'{"bos_token": "<s>"}',
    "tokenizer_config.json": b'{\n "model_max_length": 1000000000000000019884624838656\n}\n',
}


def xored(first: bytes, second: bytes) -> bytes:
    """Of equal lengths."""
    return (int.from_bytes(first, "little") ^ int.from_bytes(second, "little")).to_bytes(len(first), "little")


def codec(one: bytes, base: bytes) -> bytes:
    """xor_codec.py, which is its own inverse: as long as `one`, a shorter base padded with zeros."""
    return xored(one, base[: len(one)].ljust(len(one), b"\0"))


def keyed(content: bytes, key: bytes) -> bytes:
    """encrypt.py and decrypt.py without the hash: key and content go on by 10 MiB, a short block of the key is repeated."""
    blocks = [key[begin : begin + KEY_BLOCK] for begin in range(0, len(key), KEY_BLOCK)]
    result = b""
    for number, begin in enumerate(range(0, len(content), KEY_BLOCK)):
        part, block = content[begin : begin + KEY_BLOCK], blocks[number % len(blocks)]
        result += xored(part, (block * (len(part) // len(block) + 1))[: len(part)])
    return result


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def publish_by_file(tuned: Path, base: Path, out: Path, packed: bool = False) -> Path:
    """OASST's and Pygmalion's: each file of `tuned` with that of `base`; added_tokens.json as it is."""
    out.mkdir(parents=True)
    for name, content in files(tuned).items():
        if (base / name).exists():
            content = codec(content, (base / name).read_bytes())
            content = gzip.compress(content) if packed else content
        (out / name).write_bytes(content)
    return out


def publish_by_key(tuned: Path, key: bytes, out: Path, header: bool = True) -> Path:
    """BELLE's; without header TechGPT's, whose names have the hash of nothing."""
    out.mkdir(parents=True)
    for name, content in files(tuned).items():
        digest = hashlib.sha256(content if header else b"")
        (out / f"{name}.{digest.hexdigest()}.enc").write_bytes(digest.digest() * header + keyed(content, key))
    return out


def md5_list(folder: Path) -> str:
    """What `md5sum ./*` prints."""
    return "".join(f"{hashlib.md5(content).hexdigest()}  ./{name}\n" for name, content in sorted(files(folder).items()))


def result(out: Path) -> dict[str, bytes]:
    """The files that were made of a payload, by name."""
    found = files(out)
    del found["baize_manifest.json"]
    return found


def run(base: Path, payload: Path, out: Path, **settings: object) -> XorResult:
    """`xor` without a progress bar."""
    return xor(base, payload, out, progress=False, **settings)  # type: ignore[arg-type]
