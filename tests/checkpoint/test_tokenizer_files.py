"""The files beside a vocabulary: which template and which roles they give, and what is refused. Also: test_special_ids.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
from baize_engine.errors import CheckpointError


def test_the_chat_template_and_the_roles(tmp_path: Path) -> None:
    config = {"chat_template": "of the config", "bos_token": "<s>", "pad_token": None, "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|end|>", "image_token": "<image>"}')
    files = TokenizerFiles.read(tmp_path)
    assert files.chat_template() == ("of the config", "tokenizer_config.json")
    assert files.roles() == {"bos_token": "<s>", "eos_token": "<|end|>", "image_token": "<image>"}
    (tmp_path / "chat_template.jinja").write_text("é")
    for found in (
        TokenizerFiles.read(tmp_path),
        TokenizerFiles.of({path.name: path.read_bytes() for path in tmp_path.iterdir()}, tmp_path),
    ):
        assert found.chat_template() == ("é", "chat_template.jinja")
    assert TokenizerFiles().chat_template()[0] == ""


def test_a_broken_chat_template_is_named(tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(b"a\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: not UTF-8 at byte 1"):
        TokenizerFiles.read(tmp_path)
    path.write_bytes(bytes(1 << 21))
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        TokenizerFiles.read(tmp_path)
