"""Fixtures that several files of tests share; one of the same name in a file goes before these."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import faulty_recover
import pytest
import tiny
from fakes import small_model
from interpreter import Interpreter, interpreter

from baize_engine import recover
from baize_engine.cli.demo import PAIR
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer

# benchmarks, here and in children: ceilings on little memory (benchmarks/common.py)
os.environ["BAIZE_REHEARSAL"] = "1"
# Help and tables are as wide as where there is no terminal, here and in children.
os.environ["COLUMNS"] = "80"
# Hundreds of children import the same modules: they are compiled once, whatever the shell says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny base and diff."""
    return tiny.write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def tuned(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pair recovers to by the plain call."""
    out = tmp_path_factory.mktemp("plain") / "tuned"
    recover(*pair, out, device="cpu", progress=False)
    return out


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that lets calls of the system fail (io_faults.c)."""
    found, why_not = faulty_recover.compile_shim(tmp_path_factory.mktemp("shim"))
    if why_not:
        pytest.skip(why_not)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer, in float32."""
    config = tiny.config(torch_dtype="float32", vocab_size=SentencePieceTokenizer(small_model()).vocab_size)
    made = tiny.write_model(tmp_path_factory.mktemp("model"), config, tiny.state(config, 0, scale=0.3))
    (made / "tokenizer.model").write_bytes(small_model())
    return made


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo pair recovers to."""
    out = tmp_path_factory.mktemp("demo") / "tuned"
    recover(PAIR / "base", PAIR / "diff", out, device="cpu", progress=False)
    return out


@pytest.fixture(scope="session")
def triton() -> Iterator[Interpreter]:
    """Triton's interpreter, in one process for all tests."""
    with interpreter() as running:
        yield running


@pytest.fixture
def free_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifying takes no time of the host's, which for a tiny model would be most of a step, so that less is proposed."""
    monkeypatch.setattr("baize_engine.model.step_costs.VERIFYING", 0.0)
