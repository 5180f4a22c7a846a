"""What `speculate` asks for is made, or refused by name before weights are read; answers stay the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from assets import shared
from fakes import small_model
from safetensors.torch import load_file, save_file
from tiny import PROMPTS

from baize_engine import Engine, SamplingParams, loading, quantize
from baize_engine.errors import RequestError
from baize_engine.generation.speculation.draft_model import DraftModel
from baize_engine.generation.speculation.ngram import Ngrams
from baize_engine.kernels.quantized import Int4Weight
from baize_engine.model import int4_form
from baize_engine.model.config import ModelConfig
from baize_engine.model.kv_cache import KVCache
from baize_engine.options import EngineOptions

pytestmark = pytest.mark.usefixtures("free_host")

PARAMS = [
    SamplingParams(max_new_tokens=30, ignore_eos=True),
    SamplingParams(max_new_tokens=20, temperature=0.8, top_p=0.9, seed=4, n=2, logprobs=1),
    SamplingParams(max_new_tokens=12, repetition_penalty=1.3, logit_bias={9: 2.0}),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.model(tmp_path / "model", num_hidden_layers=3)


@pytest.fixture
def smaller(tmp_path: Path) -> Path:
    return tiny.model(tmp_path / "smaller", num_hidden_layers=1, max_position_embeddings=64)


def drafting(engine: Engine) -> DraftModel:
    speculator = engine._serving.loop._speculator
    assert speculator is not None
    assert isinstance(speculator.proposer, DraftModel)
    return speculator.proposer


def same_answers(plain: Engine, other: Engine) -> int:
    """How many tokens `other` proposed; batches of one, where drafts are worth the most, and all together."""
    proposed = 0
    asked = [([prompt], [one]) for prompt, one in zip(PROMPTS, PARAMS, strict=True)]
    for prompts, params in [*asked, (PROMPTS, PARAMS)]:
        wanted, got = plain.generate(prompts, params), other.generate(prompts, params)
        assert got == wanted
        assert [one.logprobs for one in got] == [one.logprobs for one in wanted]
        proposed += sum(one.num_draft_tokens for one in got)
    return proposed


@pytest.mark.parametrize("asked", [{}, {"dtype": "float16"}, {"quantize": "int8"}, {"cache_dtype": "float16"}])
def test_a_folder_drafts(folder: Path, smaller: Path, asked: dict[str, str]) -> None:
    with (
        Engine.from_pretrained(folder, device="cpu", **asked) as plain,  # type: ignore[arg-type]
        Engine.from_pretrained(folder, device="cpu", speculate=str(smaller), **asked) as other,  # type: ignore[arg-type]
    ):
        draft, cache = drafting(other), other._serving.loop.cache
        own = draft._prompts.cache
        assert (own.num_blocks, own.block_size, own.keys.dtype) == (
            cache.num_blocks,
            cache.block_size,
            cache.keys.dtype,
        )
        assert own.keys.shape[0] == 1
        assert type(draft._prompts.model.layers[0].o) is type(plain._serving.loop.decoder.model.layers[0].o)
        assert 0.1 < draft.token_cost < 0.6
        assert same_answers(plain, other) > 0


@pytest.mark.parametrize("asked", [{}, {"dtype": "bfloat16"}, {"quantize": "int8"}])
def test_the_int4_form_drafts(folder: Path, asked: dict[str, str]) -> None:
    with (
        Engine.from_pretrained(folder, device="cpu", **asked) as plain,  # type: ignore[arg-type]
        Engine.from_pretrained(folder, device="cpu", speculate="self-int4", **asked) as other,  # type: ignore[arg-type]
    ):
        draft = drafting(other)
        assert draft._prompts.cache is other._serving.loop.cache
        assert isinstance(draft._prompts.model.layers[0].qkv[0], Int4Weight)
        draft.token_cost = 0.1  # as of a large model, whose embedding and scales weigh less
        assert same_answers(plain, other) > 0


@pytest.mark.filterwarnings("ignore::baize_engine.errors.BaizeWarning")  # of a pair made of nothing
def test_from_diff_drafts_as_from_pretrained_does(tmp_path: Path) -> None:
    pair = tiny.write_pair(tmp_path)
    smaller = tiny.model(tmp_path / "smaller", num_hidden_layers=1, vocab_size=97)
    with Engine.from_diff(*pair, device="cpu") as plain:
        for how in ("self-int4", str(smaller)):
            with Engine.from_diff(*pair, device="cpu", speculate=how) as other:
                drafting(other).token_cost = 0.1
                assert same_answers(plain, other) > 0


@pytest.mark.parametrize("asked", [{}, {"dtype": "float16"}, {"quantize": "int8"}])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_most_tokens_of_a_trained_model_are_those_of_its_int4_form(asked: dict[str, str], temperature: float) -> None:
    folder = shared("assets/stories260K")
    cases = json.loads((folder / "golden.json").read_text())["cases"]
    params = SamplingParams(max_new_tokens=60, temperature=temperature, top_p=0.9, seed=3)
    with Engine.from_pretrained(folder, device="cpu", speculate="self-int4", speculate_tokens=4, **asked) as engine:  # type: ignore[arg-type]
        drafting(engine).token_cost = 0.0
        done = [engine.generate([case["prompt_ids"]], params)[0] for case in cases]
    if not temperature and not asked:
        for one, case in zip(done, cases, strict=True):
            assert one.token_ids[: len(case["greedy_ids"])] == case["greedy_ids"][:60]
    proposed, accepted = (sum(getattr(one, f"num_{kind}_tokens") for one in done) for kind in ("draft", "accepted"))
    assert accepted > 0.65 * proposed > 60


def test_no_model_is_loaded_for_prompt_lookup(folder: Path) -> None:
    with Engine.from_pretrained(folder, device="cpu", speculate="ngram") as engine:
        speculator = engine._serving.loop._speculator
        assert speculator is not None
        assert isinstance(speculator.proposer, Ngrams)


def test_refuses_by_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.model(tmp_path / "rows", num_hidden_layers=1, vocab_size=97)
    tiny.model(tmp_path / "larger", num_hidden_layers=4)
    (tmp_path / "empty").mkdir()
    quantize(folder, tmp_path / "packed", "int4")
    monkeypatch.setattr(loading, "load_weights", lambda *arguments: pytest.fail("weights are read"))
    for how, wanted in {
        "n-gram": "speculate is 'n-gram', wanted 'ngram', 'self-int4' or a model's folder: ",
        "empty": "speculate is '.*empty', wanted 'ngram', 'self-int4' or a model's folder: .*empty",
        "rows": "speculate is '.*rows', whose vocab_size is 97, but the model's is 96: wanted the same",
        "larger": r"speculate is '.*larger', whose weights take \d+ bytes, but the model's take \d+: wanted a smaller model",
        "model": "wanted a smaller model",
    }.items():
        asked = str(tmp_path / how) if (tmp_path / how).exists() else how
        with pytest.raises(RequestError, match=wanted):
            Engine.from_pretrained(folder, device="cpu", speculate=asked)
    for path, kind in ((folder, "int4"), (tmp_path / "packed", None)):
        with pytest.raises(RequestError, match="speculate is 'self-int4', but the model's weights are int4 already"):
            Engine.from_pretrained(path, device="cpu", quantize=kind, speculate="self-int4")


def test_a_draft_whose_tensors_are_wrong_is_refused_before_weights_are_read(
    folder: Path, smaller: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "packed"
    quantize(smaller, packed, "int8")
    monkeypatch.setattr(loading, "load_weights", lambda *arguments: pytest.fail("weights are read"))
    for path, wanted in (
        (smaller, "smaller lacks model.norm.weight"),
        (smaller, r"model.norm.weight has shape \[9\], its config.json wants \[32\]"),
        (smaller, "model.norm.weight is int32, wanted one of float32"),
        (packed, "packed lacks model.norm.weight"),
        (packed, r"model.norm.weight is float32 of shape \[9\], wanted a float of \[32\]"),
    ):
        held = load_file(path / "model.safetensors")
        norm = held.pop("model.norm.weight")
        if "shape" in wanted:
            held["model.norm.weight"] = norm[:9].clone()
        elif "int32" in wanted:
            held["model.norm.weight"] = norm.int()
        (tmp_path / "wrong" / path.name).mkdir(parents=True, exist_ok=True)
        for file in path.iterdir():
            if file.suffix != ".safetensors":
                shutil.copy(file, tmp_path / "wrong" / path.name)
        save_file(held, tmp_path / "wrong" / path.name / "model.safetensors")
        with pytest.raises(RequestError, match="speculate is '.*wrong.*', wanted .* folder: .*" + wanted):
            Engine.from_pretrained(folder, device="cpu", speculate=str(tmp_path / "wrong" / path.name))


def test_another_vocabulary_of_as_many_ids_is_refused(tmp_path: Path) -> None:
    folder = tiny.model(tmp_path / "model", vocab_size=400, num_hidden_layers=3)
    smaller = tiny.model(tmp_path / "smaller", vocab_size=400, num_hidden_layers=1)
    (folder / "tokenizer.model").write_bytes(small_model())
    with Engine.from_pretrained(folder, device="cpu", speculate=str(smaller)) as engine:  # which has no tokenizer
        assert engine.tokenizer is not None
    (smaller / "tokenizer.model").write_bytes(small_model())
    with Engine.from_pretrained(folder, device="cpu", speculate=str(smaller)) as engine:
        assert drafting(engine).most == 15
    (smaller / "tokenizer.model").write_bytes(small_model(vocab_size=300))
    with pytest.raises(
        RequestError, match=r"where id \d+ is '.+', but the model's is '.+': wanted the same vocabulary"
    ):
        Engine.from_pretrained(folder, device="cpu", speculate=str(smaller))


@pytest.mark.parametrize("how", ["self-int4", "smaller"])
def test_its_memory_is_counted(folder: Path, smaller: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of both; where the draft has a cache, its blocks, too, and fewer fit."""
    asked = how if how == "self-int4" else str(smaller)

    def tokens(free: int, **options: int) -> int:
        monkeypatch.setattr(loading, "free_bytes", lambda device: free)
        with Engine.from_pretrained(folder, device="cpu", speculate=asked, **options) as engine:
            return engine._serving.loop.cache.num_blocks * 16

    config, own = ModelConfig.from_folder(folder), ModelConfig.from_folder(smaller)
    held = sum((path / "model.safetensors").stat().st_size for path in (folder, smaller)[: 1 + (how == "smaller")])
    extra = int4_form.added_bytes(config) if how == "self-int4" else 0
    caches = (config,) if how == "self-int4" else (config, own)
    block = sum(KVCache.nbytes(one, 0, torch.float32) for one in caches)
    assert tokens(10**12) == 64 * 128
    assert tokens(held + extra + 2 * 101 * block) == 1600  # and the scrap block
    needed = held + extra + 11 * block
    assert tokens(needed, cache_tokens=160) == 160
    header = 2 * 8192  # of files, at most
    monkeypatch.setattr(loading, "load_weights", lambda *arguments: pytest.fail("weights are read"))
    with pytest.raises(RequestError, match=r"weights 0\.\d MiB and cache 0\.\d MiB need"):
        tokens(needed - header - 1, cache_tokens=160)


def test_a_draft_that_is_stored_quantised_stays_so(folder: Path, tmp_path: Path) -> None:
    quantize(folder, tmp_path / "packed", "int4")
    options = EngineOptions("cpu", quantize="int8", speculate=str(tmp_path / "packed"))
    speculator = loading.load(folder, options).loop._speculator
    assert speculator is not None
    assert isinstance(speculator.proposer, DraftModel)
    assert isinstance(speculator.proposer._prompts.model.layers[0].down, Int4Weight)
