"""The type of the KV cache on the CPU: what it takes, what it changes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import PROMPTS, model

from baize_engine import Engine, SamplingParams, loading
from baize_engine.cli import main
from baize_engine.errors import RequestError
from baize_engine.generation.sequence import Sequence
from baize_engine.loading import load
from baize_engine.options import EngineOptions

BITS = {"float16": 11, "bfloat16": 8}  # of a significand


@pytest.mark.parametrize("kind", BITS)
def test_a_cache_of_half_the_bytes(tmp_path: Path, kind: str) -> None:
    """Logits over a rounded cache are those over float32 but for the roundings; the rest of the run is the same."""
    folder = model(tmp_path / "m", num_key_value_heads=2)
    wide, half = (load(folder, EngineOptions(device="cpu", cache_dtype=dtype)) for dtype in ("auto", kind))
    wide_cache, half_cache = wide.loop.cache, half.loop.cache
    assert wide_cache.keys.dtype == torch.float32
    assert half_cache.keys.dtype == half_cache.values.dtype == getattr(torch, kind)
    assert half_cache.keys.nbytes * 2 == wide_cache.keys.nbytes
    found = []
    for loop in (wide.loop, half.loop):
        sequence = Sequence([], SamplingParams(), 0)
        loop.pool.reserve(sequence, len(PROMPTS[2]))
        found.append(loop.decoder.prefill(PROMPTS[2], sequence))
    error = float((found[0] - found[1]).norm() / found[0].norm())
    assert 0 < error < 4 * 2.0 ** -BITS[kind]


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_generation_depends_on_its_prompt_alone(tmp_path: Path, kind: str) -> None:
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    with Engine.from_pretrained(model(tmp_path / "m"), device="cpu", cache_dtype=kind) as engine:
        together = [done.token_ids for done in engine.generate(PROMPTS, params)]
        assert [engine.generate(prompt, params)[0].token_ids for prompt in PROMPTS] == together
        assert [len(ids) for ids in together] == [12, 12, 12]


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model(tmp_path / "m")
    with pytest.raises(RequestError, match="cache_dtype is 'int8', wanted auto, float32, float16, bfloat16"):
        Engine.from_pretrained(folder, device="cpu", cache_dtype="int8")
    monkeypatch.setattr(loading, "resolve_device", lambda device: "cuda")
    with pytest.raises(RequestError, match="cache_dtype is 'float16', but on a GPU the cache has the weights' type"):
        Engine.from_pretrained(folder, device="cuda", cache_dtype="float16")


def test_the_memory_check_counts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory for the weights and a cache of 16 bits, not for one of 32."""
    loaded = load(model(tmp_path / "m"), EngineOptions(device="cpu"))
    seen = []
    monkeypatch.setattr(loading, "check_fits", lambda weights, cache, free, where: seen.append(cache))
    for kind in ("auto", "float16"):
        load(tmp_path / "m", EngineOptions(device="cpu", cache_dtype=kind))
    assert seen == [2 * loaded.loop.cache.keys.nbytes, loaded.loop.cache.keys.nbytes]


def test_the_flag_of_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, **settings: object) -> None:
        raise RequestError(f"{path} with a cache of {settings['cache_dtype']}")

    monkeypatch.setattr(Engine, "from_pretrained", refuse)
    assert main(["generate", str(folder), "--prompt", "a", "--device", "cpu", "--cache_dtype", "bfloat16"]) == 1
    assert f"{folder} with a cache of bfloat16" in capsys.readouterr().err
