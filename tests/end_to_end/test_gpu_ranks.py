"""On real GPUs: models that ranks share. One GPU has the kernels and the graphs; two have NCCL inside them. `make gpu`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import rank_processes
import tiny
import torch

from baize_engine import Engine, SamplingParams
from baize_engine.backend import choose
from baize_engine.kernels import quantized, reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

ANSWER_ALL = Path(__file__).parents[1] / "helpers" / "answer_all.py"
HIDDEN, INNER, SEGMENTS = 4096, 11008, 8  # 7B
CONFIG = {
    "hidden_size": 1024, "intermediate_size": 2752, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 1001,
    "max_position_embeddings": 1024,
}  # fmt: skip
PROMPTS = [[1, 5, 9], [1, *range(3, 90)], [1, *(3 + n * 7 % 900 for n in range(700))]]  # the last in two pieces
PARAMS = [SamplingParams(max_new_tokens=24, temperature=t, seed=5, ignore_eos=True, logprobs=1) for t in (0, 0.9, 0)]


@pytest.mark.parametrize("rows", [1, 8, 64, 300])
@pytest.mark.parametrize("kind", ["float16", "int8", "int4"])
def test_sums_of_segments_are_those_of_fewer_at_a_time(kind: str, rows: int) -> None:
    generator = torch.Generator("cuda").manual_seed(rows)
    x, weight = (
        torch.randn(*shape, generator=generator, device="cuda").half()
        for shape in ((rows, INNER), (SEGMENTS * HIDDEN, INNER // SEGMENTS))
    )
    weight = weight * INNER**-0.5
    stacked = weight if kind == "float16" else quantized.quantize(weight, kind)
    ops = choose.ops("cuda")

    def sums(first: int, count: int) -> torch.Tensor:
        width = INNER // SEGMENTS
        part = x[:, first * width : (first + count) * width].contiguous()
        matrix = quantized.rows(stacked, first * HIDDEN, (first + count) * HIDDEN)
        out = torch.empty(rows, HIDDEN, device="cuda")
        return ops.segment_sums(part, matrix, segments=count, out=out, batch_invariant=rows <= 64)

    whole = sums(0, SEGMENTS)
    for count in (4, 2, 1):
        parts = torch.stack([sums(first, count) for first in range(0, SEGMENTS, count)])
        assert torch.equal(reference.tree(parts), whole)
        total = x.new_zeros(rows, HIDDEN)
        ops.add_sums(parts, out=total)
        assert torch.equal(total, whole.half())
    wide = quantized.dequantize(stacked).double().unflatten(0, (SEGMENTS, HIDDEN))
    exact = sum(part @ matrix.t() for part, matrix in zip(x.double().chunk(SEGMENTS, 1), wide, strict=True))
    assert float((whole - exact).abs().max()) < 0.02


def test_the_form_of_ranks_in_graphs_is_that_of_the_whole_but_for_rounding(tmp_path: Path) -> None:
    folder = tiny.model(tmp_path / "m", scale=0.05, **CONFIG)
    found = {}
    for how in (1, "exact"):
        with Engine.from_pretrained(folder, device="cuda", dtype="float16", tensor_parallel=how) as engine:
            found[how] = engine.prompt_logprobs(PROMPTS, 0), engine.generate(PROMPTS, PARAMS)
            alone = [engine.generate(prompt, params)[0] for prompt, params in zip(PROMPTS, PARAMS, strict=True)]
            assert [one.token_ids for one in alone] == [one.token_ids for one in found[how][1]]
    for plain, segmented in zip(found[1][0], found["exact"][0], strict=True):
        for one, two in zip(plain[1:], segmented[1:], strict=True):
            assert one.logprob == pytest.approx(two.logprob, abs=0.05)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_ranks_on_gpus_have_the_bits_of_one(tmp_path: Path, quantize: str | None) -> None:
    folder = tiny.model(tmp_path / "m", scale=0.05, **CONFIG)
    params = [
        {"max_new_tokens": each.max_new_tokens, "temperature": each.temperature, "seed": 5, "ignore_eos": True, "logprobs": 1}
        for each in PARAMS
    ]  # fmt: skip
    load = {"path": str(folder), "device": "cuda", "dtype": "float16", "quantize": quantize}
    found = []
    for size in (1, 2, 4, 8)[: torch.cuda.device_count().bit_length()]:
        jobs = tmp_path / f"{size}.json"
        jobs.write_text(
            json.dumps([{"load": {**load, "tensor_parallel": "exact"}, "prompts": PROMPTS, "params": params}])
        )
        done = rank_processes.run(tmp_path / str(size), [str(ANSWER_ALL), str(jobs)], size)
        assert (done.codes, done.err) == ([0] * size, "")
        found.append(done.out)
    assert len(found) > 1
    assert set(found) == {found[0]}
