"""A base, a finetune and a key, tiny: what payloads are made of."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tiny
from published_xor import EXTRA


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """As convert_llama_weights_to_hf.py writes it, tiny."""
    cfg = tiny.config()
    folder = tiny.write_model(tmp_path / "base", cfg, tiny.state(cfg, 0), "bin", shards=2)
    for name, content in {**EXTRA, "tokenizer.json": b'{"version": "1.0"}'}.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A vocabulary row more, a longer config, an empty file, a shorter one, no tokenizer.json."""
    cfg = tiny.config(vocab_size=97, transformers_version="4.28.0.dev0")
    folder = tiny.write_model(tmp_path / "tuned", cfg, tiny.state(cfg, 1), "bin", shards=2)
    for name, content in {**EXTRA, "special_tokens_map.json": b"{}", "added_tokens.json": b'{"<pad>": 96}'}.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Meta's folder."""
    folder = tmp_path / "meta"
    folder.mkdir()
    (folder / "consolidated.00.pth").write_bytes(b"PK\x03\x04" + random.Random(1).randbytes(50_001))
    (folder / "params.json").write_text("{}")
    return folder
