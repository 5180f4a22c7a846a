"""Engines whose model several processes hold: the bits of one, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import rank_processes
import tiny

from baize_engine import quantize

ANSWER_ALL = Path(__file__).parent / "helpers" / "answer_all.py"
PARAMS = [
    {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 2},
    {"max_new_tokens": 12, "temperature": 0.9, "seed": 3, "n": 2, "ignore_eos": True, "logprobs": 0},
    {"max_new_tokens": 9, "temperature": 0.8, "seed": 4, "repetition_penalty": 1.2, "ignore_eos": True},
]
WIDE = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32}


def jobs(folder: Path) -> list[dict]:
    """One for each corner of the space of configs and precisions."""
    folder.mkdir()
    plain = tiny.model(folder / "plain")
    grouped = tiny.model(folder / "grouped", num_attention_heads=8, head_dim=8, vocab_size=101)
    tied = tiny.model(folder / "tied", tie_word_embeddings=True, vocab_size=97)
    wide = tiny.model(folder / "wide", **WIDE)
    base, diff = tiny.write_pair(folder / "pair")
    loads = [
        {"path": plain},
        {"path": plain, "dtype": "bfloat16", "cache_dtype": "float16", "speculate": "ngram"},
        {"path": grouped, "dtype": "float16", "cache_tokens": 160},
        {"path": tied},
        *({"path": path, "quantize": kind} for path in (grouped, tied) for kind in ("int8", "int4")),
        *({"path": quantize(wide, folder / kind, kind).folder} for kind in ("int8", "int4")),
        {"path": plain, "quantize": "int8", "exact_activations": True},
        *({"path_raw": base, "path_diff": diff, "quantize": kind} for kind in (None, "int4")),
    ]
    return [
        {"load": {**{name: str(value) if name.startswith("path") else value for name, value in load.items()}, "device": "cpu"},
         "prompts": tiny.PROMPTS, "params": PARAMS}
        for load in loads
    ]  # fmt: skip


def answers(folder: Path, asked: list[dict], size: int, how: object, **environment: str) -> list:
    """What `size` ranks answer to the jobs, one after another."""
    folder.mkdir()
    path = folder / "jobs.json"
    path.write_text(json.dumps([{**job, "load": {**job["load"], "tensor_parallel": how}} for job in asked]))
    found = rank_processes.run(folder, ["-W", "ignore", str(ANSWER_ALL), str(path)], size, **environment)
    assert (found.codes, found.err) == ([0] * size, "")
    return [json.loads(line) for line in found.out.splitlines()]


def test_ranks_have_the_bits_of_one(tmp_path: Path) -> None:
    asked = jobs(tmp_path / "models")
    alone = answers(tmp_path / "1", asked, 1, "exact")
    assert len(alone) == len(asked)
    for size, how in ((2, "auto"), (4, 4)):
        assert answers(tmp_path / str(size), asked, size, how) == alone


@pytest.mark.parametrize("backend", ["torch", "cpp-scalar"])
def test_ranks_have_the_bits_of_one_on_other_backends(tmp_path: Path, backend: str) -> None:
    asked = [job for n, job in enumerate(jobs(tmp_path / "models")) if n in (0, 5, 6)]
    alone = answers(tmp_path / "1", asked, 1, "exact", BAIZE_BACKEND=backend)
    assert answers(tmp_path / "2", asked, 2, "auto", BAIZE_BACKEND=backend) == alone
