"""Engine.from_pretrained: real folders give the ids that others give, and what cannot be loaded is refused before it is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from assets import shared
from fakes import small_model
from tiny import PROMPTS, model

from baize_engine import Engine, SamplingParams, loading
from baize_engine.backend import choose
from baize_engine.checkpoint.index import read_index
from baize_engine.errors import BackendError, CheckpointError, RequestError
from baize_engine.generation.sequence import Sequence
from baize_engine.loading import load
from baize_engine.model.config import ModelConfig
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import LOGIT_ROWS
from baize_engine.model.weights import nbytes
from baize_engine.options import EngineOptions


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2}, {"tie_word_embeddings": True}])
def test_greedy_ids_are_those_of_transformers(tmp_path: Path, changes: dict) -> None:
    transformers = pytest.importorskip("transformers")
    folder = model(tmp_path / "m", **changes)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with Engine.from_pretrained(folder, device="cpu") as engine:
        done = engine.generate(PROMPTS, SamplingParams(max_new_tokens=20))
    for completion, prompt in zip(done, PROMPTS, strict=True):
        ids = torch.tensor([prompt])
        wanted = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        assert completion.token_ids == wanted[0, len(prompt) :].tolist()
    assert len({i for completion in done for i in completion.token_ids}) > 8


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
        ({"logit_bias": {7: 5.0, 9: -5.0}}, {"sequence_bias": {(7,): 5.0, (9,): -5.0}}),
        ({"banned_token_ids": list(range(40))}, {"suppress_tokens": list(range(40))}),
        (
            {"min_new_tokens": 6, "repetition_penalty": 0.7, "logit_bias": {2: 30.0}},
            {"min_new_tokens": 6, "repetition_penalty": 0.7, "sequence_bias": {(2,): 30.0}},
        ),
    ],
    ids=["penalty", "bias", "banned", "together"],
)
def test_shaped_greedy_ids_are_those_of_transformers(tmp_path: Path, mine: dict, theirs: dict) -> None:
    transformers = pytest.importorskip("transformers")
    folder = model(tmp_path / "m")
    other = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([PROMPTS[0]])
    wanted = other.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, **theirs)
    with Engine.from_pretrained(folder, device="cpu") as engine:
        plain, shaped = (
            engine.generate(PROMPTS[0], SamplingParams(max_new_tokens=20, **asked))[0] for asked in ({}, mine)
        )
    assert shaped.token_ids == wanted[0, 4:].tolist() != plain.token_ids


def test_the_real_model_says_its_golden_texts() -> None:
    folder = shared("assets/stories260K")
    cases = json.loads((folder / "golden.json").read_text())["cases"]
    with Engine.from_pretrained(folder, device="cpu") as engine:
        assert engine.tokenizer is not None
        for case in cases:
            params = SamplingParams(max_new_tokens=len(case["greedy_ids"]))
            assert engine.tokenizer.encode(case["prompt"]) == case["prompt_ids"]
            (done,) = engine.generate(case["prompt"], params)
            assert done.token_ids == case["greedy_ids"]
            assert case["prompt"] + done.text == case["text"]
            assert "".join(engine.stream(case["prompt"], params)) == done.text


def test_samples_come_back_by_seed_alone_and_in_company(tmp_path: Path) -> None:
    params = SamplingParams(max_new_tokens=12, temperature=1.0, top_p=0.95, seed=5, n=3)
    with Engine.from_pretrained(model(tmp_path / "m"), device="cpu") as engine:
        alone = [c.token_ids for c in engine.generate(PROMPTS[1], params)]
        together = [c.token_ids for c in engine.generate(PROMPTS, params) if c.prompt_index == 1]
        other = [c.token_ids for c in engine.generate(PROMPTS[1], SamplingParams(12, 1.0, seed=6, n=3))]
    assert alone == together
    assert len({tuple(ids) for ids in [*alone, *other]}) == 6


def test_scores_are_the_sums_of_the_steps_logprobs(tmp_path: Path) -> None:
    with Engine.from_pretrained(model(tmp_path / "m"), device="cpu") as engine:
        (done,) = engine.generate(PROMPTS[0], SamplingParams(max_new_tokens=10, logprobs=4))
        assert done.logprobs is not None
        total = sum(entry.logprob for entry in done.logprobs)
        assert engine.score(PROMPTS[0], [done.token_ids]) == pytest.approx([total], abs=1e-4)
        ids, wanted = zip(*done.logprobs[0].top, strict=True)
        assert engine.next_token_logprobs(PROMPTS[0], ids)[0] == pytest.approx(list(wanted), abs=1e-5)


def test_the_head_of_a_long_text_is_never_run_for_more_rows_than_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the real decoder: rows of every tensor of logits that is made, and one token's number in two divisions."""
    with Engine.from_pretrained(model(tmp_path / "m", max_position_embeddings=700), device="cpu") as engine:
        rows: list[int] = []
        head = Llama.head_ops

        def noting(self: Llama, hidden: torch.Tensor, logits: torch.Tensor, **options: Any) -> object:
            rows.append(logits.shape[0])
            return head(self, hidden, logits, **options)

        monkeypatch.setattr(Llama, "head_ops", noting)
        ids = [3 + i * 7 % 90 for i in range(600)]
        whole = engine.prompt_logprobs([ids])[0]
        (late,) = engine.score(ids[:590], [ids[590:]])
        assert max(rows) <= LOGIT_ROWS
        assert math.fsum(entry.logprob for entry in whole[590:] if entry) == late
        engine.next_token_logprobs([ids], [5])
        assert max(rows) <= LOGIT_ROWS


def test_an_abandoned_stream_frees_the_real_cache(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", vocab_size=400)
    (folder / "tokenizer.model").write_bytes(small_model())
    with Engine.from_pretrained(folder, device="cpu", max_model_len=40) as engine:
        pool = engine._serving.loop.pool
        stream = engine.stream("the cat sat")
        next(stream)
        assert pool.free_blocks < pool.num_blocks
        stream.close()
        assert pool.free_blocks == pool.num_blocks


def test_a_full_cache_is_refused_and_freed(tmp_path: Path) -> None:
    with Engine.from_pretrained(model(tmp_path / "m"), device="cpu", cache_tokens=32) as engine:
        assert engine.max_model_len == 32
        held, pool = Sequence([], SamplingParams(), 0), engine._serving.loop.pool
        pool.reserve(held, 20)  # as another request would
        with pytest.raises(RequestError, match="raise cache_tokens"):
            engine.generate([1, 5] * 10)
        pool.free(held)
        assert pool.free_blocks == 2
        assert len(engine.generate([1, 5] * 10, SamplingParams(ignore_eos=True))[0].token_ids) == 12


def test_lengths_may_be_left_to_each_other() -> None:
    assert EngineOptions().context_length(2048) == 2048
    assert EngineOptions(max_model_len=512).context_length(2048) == 512
    assert EngineOptions(cache_tokens=300).context_length(2048) == 300
    assert EngineOptions(cache_tokens=9000).context_length(2048) == 2048
    assert EngineOptions(max_model_len=100, cache_tokens=9000).context_length(2048) == 100


def test_the_cache_has_room_for_a_full_batch_unless_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 samples of 512 tokens or of their most; half of the free memory at most; one sample's most at least."""
    long, short = model(tmp_path / "long", max_position_embeddings=700), model(tmp_path / "short")

    def tokens(folder: Path, free: int | None, **asked: int) -> int:
        monkeypatch.setattr(loading, "free_bytes", lambda device: free)
        with Engine.from_pretrained(folder, device="cpu", **asked) as engine:
            pool = engine._serving.loop.pool
            return pool.num_blocks * pool.block_size

    assert tokens(long, 10**12) == 64 * 512
    assert tokens(short, 10**12) == 64 * 128
    assert tokens(short, 10**12, max_model_len=32) == 64 * 32
    assert tokens(short, 10**12, cache_tokens=160) == 160
    config = ModelConfig.from_folder(long)
    weights = nbytes(read_index(long), config, "auto", None)
    spare = KVCache.nbytes(config, 1600, torch.float32)
    assert tokens(long, weights + 2 * spare) == 1600
    assert tokens(long, weights + 2 * spare - 2) == 1584
    assert tokens(long, weights + spare // 2) == tokens(long, None) == 704  # 44 blocks


@pytest.mark.parametrize(
    ("arguments", "error", "wanted"),
    [
        ({"quantize": "int3"}, RequestError, "quantize is 'int3'"),
        ({"dtype": "float8"}, RequestError, "dtype is 'float8', wanted auto"),
        ({"device": "tpu"}, BackendError, "device 'tpu' is not known"),
        (
            {"max_model_len": 129},
            RequestError,
            "max_model_len is 129, wanted at most the model's max_position_embeddings, 128",
        ),
        ({"max_model_len": 1}, RequestError, "max_model_len is 1, wanted an integer of at least 2"),
        (
            {"max_model_len": 64, "cache_tokens": 63},
            RequestError,
            "cache_tokens is 63, wanted an integer of at least 64",
        ),
        *(
            ({"threads": n}, RequestError, f"threads is {n}, wanted an integer of at least 1, at most 1024")
            for n in (0, 1025, 2000, 20000, 100000, 10**30, True)
        ),
    ],
)
def test_refuses_arguments_by_name(tmp_path: Path, arguments: dict, error: type, wanted: str) -> None:
    folder = model(tmp_path / "m")
    with pytest.raises(error, match=wanted):
        Engine.from_pretrained(folder, **{"device": "cpu", **arguments})


def test_memory_is_checked_before_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model(tmp_path / "m")
    read = []
    monkeypatch.setattr(loading, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(loading, "load_weights", lambda *arguments: read.append(arguments))
    with pytest.raises(
        RequestError, match=r"weights 0\.1 MiB and cache 0\.1 MiB need 0\.2 MiB, and this machine has 0\.0 MiB"
    ):
        Engine.from_pretrained(folder, device="cpu")
    assert read == []


def test_a_folder_without_tokenizer_serves_ids_and_says_why_not_text(tmp_path: Path) -> None:
    with Engine.from_pretrained(model(tmp_path / "m"), device="cpu") as engine:
        assert engine.generate([1, 5], SamplingParams(max_new_tokens=3))[0].text == ""
        with pytest.raises(RequestError, match=r"prompt 0, a text, needs a tokenizer: .*tokenizer\.model: absent"):
            engine.generate("text")


def test_a_broken_tokenizer_is_not_passed_over(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="not a sentencepiece model"):
        Engine.from_pretrained(folder, device="cpu")


def test_the_loop_alone_needs_only_the_parts(tmp_path: Path) -> None:
    loaded = load(model(tmp_path / "m"), EngineOptions(device="cpu", dtype="float16", max_model_len=32))
    params = SamplingParams(max_new_tokens=4, ignore_eos=True)
    loop, sequence = loaded.loop, Sequence([1, 5], params, 4)
    loop.add([sequence])
    while not sequence.finished:
        loop.step()
    assert len(sequence.token_ids) == 4
    assert loaded.tokenizer is None


def test_activations_of_prompts_are_exact_where_asked_for(tmp_path: Path) -> None:
    """With quantised weights a prompt on the CPU has 8 bits an activation by default; a step of one token never has."""
    ids, folder = list(range(3, 43)), model(tmp_path / "m")
    logits = {}
    for exact in (False, True):
        loaded = load(folder, EngineOptions(device="cpu", quantize="int8", exact_activations=exact))
        for key, run in ((exact, ids), ((exact, "one"), ids[:1])):
            sequence = Sequence([], SamplingParams(), 0)
            loaded.loop.pool.reserve(sequence, len(run))
            logits[key] = loaded.loop.decoder.forward([run], [sequence], prompt=len(run) > 1)
    assert torch.equal(logits[False, "one"], logits[True, "one"])
    if choose.ops("cpu").rows["linear_add"].name.startswith("cpp"):
        error = float((logits[False] - logits[True]).norm() / logits[True].norm())
        assert 0.0 < error < 0.1
    else:
        assert torch.equal(logits[False], logits[True])
