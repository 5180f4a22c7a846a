"""On a real GPU: the kernels at the shapes of a 7B layer, results that ignore the batch, graphs, and the engine. `make gpu`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import decoders
import forced
import oracles
import profile_step
import pytest
import tiny
import torch
from triton.runtime.jit import JITFunction

from baize_engine import Engine, SamplingParams, recover
from baize_engine.backend import choose
from baize_engine.backend.adders import Operand
from baize_engine.backend.cuda_adder import CHUNK, PART, CudaAdder
from baize_engine.generation.loop import Loop
from baize_engine.generation.speculation.ngram import Ngrams
from baize_engine.generation.speculation.speculator import Speculator
from baize_engine.kernels import quantized, reference
from baize_engine.loaded_model import LoadedModel
from baize_engine.model import names
from baize_engine.model.buffers import cache_slots
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import Llama
from baize_engine.model.quantize import quantize as save_quantized
from baize_engine.model.step_costs import step_costs
from baize_engine.model.step_state import StepState
from baize_engine.model.verify_state import VerifyState
from baize_engine.model.weights import load_weights

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

HIDDEN, INNER, HEADS, DIM = 4096, 11008, 32, 128
EPS = 1e-6
KINDS = ("float16", "bfloat16", "int8", "int4")
VOCABULARY = 32000
ROWS = (1, 2, 8, 9, 16, 32, 33, 64)
PROMPT = 300  # rows of a prompt: cuBLAS, and kernels of their own for norm, rope and silu


def ops() -> Any:
    return choose.ops("cuda")


def rand(*shape: int, seed: int, dtype: torch.dtype = torch.float16, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return (torch.randn(*shape, generator=generator, device="cuda") * scale).to(dtype)


def activation(kind: str) -> torch.dtype:
    return torch.bfloat16 if kind == "bfloat16" else torch.float16


def matrix(n: int, k: int, kind: str, seed: int = 5) -> Any:
    weight = rand(n, k, seed=seed, dtype=activation(kind), scale=k**-0.5)
    return weight if kind.endswith("float16") else quantized.quantize(weight, kind)


def normed(rows: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = activation(kind)
    return rand(rows, HIDDEN, seed=rows, dtype=dtype, scale=3), (1 + rand(HIDDEN, seed=2, scale=0.3)).to(dtype)


def wide(weight: Any) -> torch.Tensor:
    return quantized.dequantize(weight).double()


def test_the_backend_is_triton() -> None:
    assert {row.name for row in ops().rows.values()} == {"triton"}


@pytest.mark.parametrize("rows", [*ROWS, PROMPT])
@pytest.mark.parametrize("kind", KINDS)
def test_gate_up(kind: str, rows: int) -> None:
    x, norm = normed(rows, kind)
    weight = matrix(2 * INNER, HIDDEN, kind)
    out = torch.full((rows, INNER), float("nan"), dtype=x.dtype, device="cuda")
    got = ops().gate_up(x, norm, EPS, [weight], out=out, batch_invariant=rows < PROMPT)
    parts = oracles.rms_norm(x, norm, EPS) @ wide(weight).T
    oracle = oracles.silu_mul(parts[:, :INNER], parts[:, INNER:])
    oracles.no_worse(got, reference.gate_up(x, norm, EPS, [weight], out=torch.empty_like(out)), oracle)


@pytest.mark.parametrize("rows", [*ROWS, PROMPT])
@pytest.mark.parametrize("kind", KINDS)
def test_linear_add(kind: str, rows: int) -> None:
    x = rand(rows, INNER, seed=rows, dtype=activation(kind))
    weight, before = matrix(HIDDEN, INNER, kind), rand(rows, HIDDEN, seed=9, dtype=activation(kind))
    got = ops().linear_add(x, weight, out=before.clone(), batch_invariant=rows < PROMPT)
    plain = reference.linear_add(x, weight, out=before.clone())
    oracles.no_worse(got, plain, before.double() + x.double() @ wide(weight).T)


@pytest.mark.parametrize("rows", [1, 9, 64, PROMPT])
@pytest.mark.parametrize("kind", KINDS)
def test_head(kind: str, rows: int) -> None:
    x, norm = normed(rows, kind)
    weight = matrix(VOCABULARY, HIDDEN, kind)
    got = ops().head(
        x, norm, EPS, weight, out=torch.empty(rows, VOCABULARY, device="cuda"), batch_invariant=rows < PROMPT
    )
    plain = reference.head(x, norm, EPS, weight, out=torch.empty_like(got))
    oracles.no_worse(got.to(x.dtype), plain.to(x.dtype), oracles.rms_norm(x, norm, EPS) @ wide(weight).T)


def angles() -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of 2048 positions."""
    angle = torch.arange(2048, device="cuda")[:, None] * 10000.0 ** (-torch.arange(64, device="cuda") / 64)[None, :]
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("rows", [*ROWS, PROMPT])
@pytest.mark.parametrize("kind", KINDS)
def test_qkv_rope_store(kind: str, rows: int) -> None:
    x, norm = normed(rows, kind)
    weight = matrix(3 * HIDDEN, HIDDEN, kind)
    cos, sin = angles()
    positions = torch.randperm(2048, device="cuda")[:rows]
    slots = torch.randperm(64 * 16, device="cuda")[:rows]
    q = torch.empty(rows, HEADS, DIM, dtype=x.dtype, device="cuda")
    caches = [torch.zeros(64, 16, HEADS, DIM, dtype=x.dtype, device="cuda") for _ in range(4)]
    plain_q = torch.empty_like(q)
    ops().qkv_rope_store(
        x, norm, EPS, [weight], cos, sin, positions, *caches[:2], slots, q=q, batch_invariant=rows < PROMPT
    )
    reference.qkv_rope_store(x, norm, EPS, [weight], cos, sin, positions, *caches[2:], slots, q=plain_q)
    parts = (oracles.rms_norm(x, norm, EPS) @ wide(weight).T).unflatten(1, (-1, DIM))
    turned = oracles.rope(parts[:, : 2 * HEADS], cos, sin, positions)
    oracles.no_worse(q, plain_q, turned[:, :HEADS])
    k, v, plain_k, plain_v = (cache.flatten(0, 1)[slots] for cache in caches)
    oracles.no_worse(k, plain_k, turned[:, HEADS:])
    oracles.no_worse(v, plain_v, parts[:, 2 * HEADS :])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_how_many_there_are(kind: str) -> None:
    """Equal bits of every product, and of what it writes to the cache, for each of ROWS."""
    x, norm = normed(64, kind)
    inner = rand(64, INNER, seed=3, dtype=x.dtype)
    up, down = matrix(2 * INNER, HIDDEN, kind), matrix(HIDDEN, INNER, kind, seed=6)
    best = torch.empty(64, VOCABULARY // 32, dtype=torch.int32, device="cuda")
    head, qkv = matrix(VOCABULARY, HIDDEN, kind, seed=7), matrix(3 * HIDDEN, HIDDEN, kind, seed=8)
    positions, slots = torch.randperm(2048, device="cuda")[:64], torch.randperm(8 * 16, device="cuda")[:64]
    turns = angles()

    def run(begin: int, end: int) -> list[torch.Tensor]:
        count = end - begin
        q = x.new_empty(count, HEADS, DIM)
        caches = [x.new_zeros(8, 16, HEADS, DIM) for _ in range(2)]
        places = positions[begin:end].contiguous(), *caches, slots[begin:end].contiguous()
        ops().qkv_rope_store(x[begin:end].contiguous(), norm, EPS, [qkv], *turns, *places, q=q, batch_invariant=True)
        k, v = (cache.flatten(0, 1)[slots[begin:end]] for cache in caches)
        gate = ops().gate_up(
            x[begin:end].contiguous(), norm, EPS, [up], out=x.new_empty(count, INNER), batch_invariant=True
        )
        total = ops().linear_add(
            inner[begin:end].contiguous(), down, out=x.new_zeros(count, HIDDEN), batch_invariant=True
        )
        logits = torch.empty(count, VOCABULARY, device="cuda")
        ops().head(x[begin:end].contiguous(), norm, EPS, head, out=logits, batch_invariant=True, best=best[:count])
        return [q, k, v, gate, total, logits]

    whole = run(0, 64)
    for rows in ROWS:
        for mine, all_ in zip(run(0, rows), whole, strict=True):
            assert torch.equal(mine, all_[:rows]), rows
    for row in (1, 40, 63):
        for mine, all_ in zip(run(row, row + 1), whole, strict=True):
            assert torch.equal(mine[0], all_[row])


def paged(lens: list[int], counts: list[int], kv_heads: int) -> tuple[torch.Tensor, ...]:
    blocks = sum(-(-length // 16) for length in lens)
    order = torch.randperm(blocks).tolist()
    tables = torch.zeros(len(lens), 128, dtype=torch.int32)
    for s, length in enumerate(lens):
        for place in range(-(-length // 16)):
            tables[s, place] = order.pop()
    k, v = (rand(blocks, 16, kv_heads, DIM, seed=seed) for seed in (1, 2))
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
    q = rand(sum(counts), HEADS, DIM, seed=3)
    return q, k, v, tables.cuda(), starts.cuda(), torch.tensor(lens, dtype=torch.int32).cuda()


def exact_attention(case: tuple[torch.Tensor, ...], scale: float) -> torch.Tensor:
    """As oracles.attention, a sequence at a time."""
    q, k, v, tables, starts, lens = case
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    group = q.shape[1] // k.shape[2]
    for s, length in enumerate(lens.tolist()):
        places = torch.arange(length, device=q.device)
        rows = tables[s].long()[places // 16] * 16 + places % 16
        keys, values = (c.flatten(0, 1)[rows].double().repeat_interleave(group, 1).transpose(0, 1) for c in (k, v))
        begin, end = int(starts[s]), int(starts[s + 1])
        scores = q[begin:end].double().transpose(0, 1) @ keys.transpose(1, 2) * scale
        own = torch.arange(length - (end - begin), length, device=q.device)
        scores.masked_fill_(places[None, :] > own[:, None], float("-inf"))
        out[begin:end] = (scores.softmax(-1) @ values).transpose(0, 1)
    return out


@pytest.mark.parametrize("kv_heads", [32, 8, 1])
@pytest.mark.parametrize(
    ("lens", "counts"),
    [([1], [1]), ([2048, 77, 256, 300], [1, 1, 1, 1]), ([128] * 64, [1] * 64), ([700], [700]), ([1500, 40], [400, 40])],
    ids=["1", "decode", "batch 64", "prefill", "chunk"],
)
def test_attention(lens: list[int], counts: list[int], kv_heads: int) -> None:
    case = paged(lens, counts, kv_heads)
    got = ops().attention(*case, DIM**-0.5)
    oracles.no_worse(got, reference.attention(*case, DIM**-0.5), exact_attention(case, DIM**-0.5))
    if max(counts) == 1:
        bounded = ops().attention(*case, DIM**-0.5, max_context=2048)
        assert torch.equal(got, bounded)


@pytest.mark.parametrize("top_k", [0, 1, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("min_p", [0.0, 0.05])
def test_sample(top_k: int, top_p: float, min_p: float) -> None:
    """The reference's choices at a vocabulary of 32000; one in 64 may differ where two draws are within rounding."""
    logits = rand(64, 32000, seed=1, dtype=torch.float32, scale=3)
    call = {
        "temperature": torch.tensor([0.0, 0.7, 1.0, 1.5] * 16), "top_k": torch.full((64,), top_k),
        "top_p": torch.full((64,), top_p), "min_p": torch.full((64,), min_p), "seeds": torch.arange(64) * 123456789123,
        "sample_index": torch.arange(64) % 5, "positions": torch.arange(64) * 3,
    }  # fmt: skip
    on_gpu = {name: value.cuda() for name, value in call.items()}
    got = ops().sample(logits, *on_gpu.values()).cpu()
    wanted = reference.sample(logits.cpu(), **call)
    assert int((got != wanted).sum()) <= 1
    assert torch.equal(got[::4], wanted[::4])


# The decoder


def model(quantize: str | None, device: str = "cuda") -> Llama:
    """Two layers, wide enough that every tile is whole and every split is used."""
    cfg = tiny.config(
        vocab_size=4000, hidden_size=1024, intermediate_size=2752, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=1024,
    )  # fmt: skip
    made = decoders.make(cfg, torch.float16, None, joined=True)
    weights = {}
    for name, weight in made.weights.items():
        float_ = name.endswith("norm.weight") or "embed" in name
        weight = weight.to(device)
        weights[name] = weight if float_ or not quantize else quantized.quantize(weight, quantize)
    return Llama(made.config, weights, choose.ops(device), device)


def run(made: Any, prompts: list[list[int]], rows: list[dict]) -> list[list[int]]:
    return decoders.decode(made, prompts, rows, tokens=4096, ahead=True)[0]


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_graphs_and_batches_change_no_token(quantize: str | None) -> None:
    """Greedy and sampled rows: eager alone, a graph alone, graphs with 3 and 7 rows (buckets of 4 and 8)."""
    made = model(quantize)
    prompts = [decoders.prompt(n, n) for n in (3, 17, 300, 40, 16, 255, 90)]
    rows = [{"left": 20 + n, "temperature": n % 2 * 1.0, "seed": n, "top_p": 0.95} for n in range(7)]
    together = run(made, prompts, rows)
    assert run(made, prompts[:3], rows[:3]) == together[:3]
    for number in range(7):
        one = slice(number, number + 1)
        assert run(made, prompts[one], rows[one]) == together[one]
    decoder = decoders.Decoder(made, 1024, ahead=False)
    sequence = decoder.sequence()
    ids = [int(decoder.prefill(prompts[2], sequence).argmax())]
    while len(ids) < 23:
        ids.append(int(decoder.forward([[ids[-1]]], [sequence]).argmax()))
    assert ids == together[2]


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_many_rows_change_no_token(quantize: str | None) -> None:
    """40 and 20 rows, in buckets of 64 and 32, against rows alone: tiles of other numbers of rows in every product."""
    made = model(quantize)
    prompts = [decoders.prompt(3 + n, n) for n in range(40)]
    rows = [{"left": 12, "temperature": n % 2 * 1.0, "seed": n, "top_p": 0.95} for n in range(40)]
    together = run(made, prompts, rows)
    assert run(made, prompts[:20], rows[:20]) == together[:20]
    for number in (0, 7, 19, 20, 39):
        one = slice(number, number + 1)
        assert run(made, prompts[one], rows[one]) == together[one]


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_verified_rows_have_the_bits_of_decode_steps(quantize: str | None) -> None:
    """1 to 40 rows of two sequences in their graphs, one over several splits of a context, after drafts that were wrong."""
    made = model(quantize)
    decoder = decoders.Decoder(made, 2048)
    for length in (5, 300):
        sequence = decoder.sequence()
        decoder.prefill(decoders.prompt(length), sequence)
        decoder.pool.reserve(sequence, 40)
        sequence.token_ids, sequence.max_tokens, sequence.seed = [7], 100, 3
        steps = StepState(made, decoder.cache, 1)
        steps.put(0, sequence)
        logits, tokens = [], []
        for _ in range(24):
            steps.run(512, 1)
            logits.append(steps.logits[0].clone())
            tokens.append(int(steps.tokens[0]))
        other = decoder.sequence()
        decoder.prefill(decoders.prompt(9, 1), other)
        decoder.pool.reserve(other, 40)
        other.token_ids = [8]
        state = VerifyState(made, decoder.cache, 64)
        for right, wrong, beside in ((1, 0, 0), (3, 2, 1), (7, 0, 9), (0, 5, 3), (20, 3, 16)):
            draft = tokens[:right] + [11] * wrong
            chosen = state.run([other, sequence], [[9] * beside, draft]).tolist()[1 + beside :]
            assert chosen[: right + 1] == tokens[: right + 1], (length, right)
            for row in range(right + 1):
                assert torch.equal(state.logits[1 + beside + row], logits[row]), (length, right, row)


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_speculation_changes_no_token(quantize: str | None) -> None:
    """Prompts that repeat themselves, greedy and sampled, alone and together, and some for which the host chooses."""
    made = model(quantize)
    prompts = [decoders.prompt(n, n) * 6 for n in (3, 17, 40)]
    params = [
        SamplingParams(max_new_tokens=60, n=2, temperature=heat, seed=5, logprobs=top)
        for heat, top in ((0.0, None), (1.0, None), (0.7, 2))
    ]
    answers = []
    for proposer in (None, Ngrams()):
        speculator = None if proposer is None else Speculator(proposer, step_costs("float16", on_gpu=True), 15, 64)
        loop = Loop(decoders.Decoder(made, 4096), speculator=speculator)
        engine = Engine(LoadedModel(loop, made.config.vocab_size, 1000, (2,)))
        answers.append([(one.token_ids, one.logprobs) for one in engine.generate(prompts, params)])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_short_prompts_in_one_launch_have_the_bits_of_op_by_op(quantize: str | None) -> None:
    """Captured, replayed for another length of the same bucket, and after other tokens of the sequence."""
    made = model(quantize)
    by_launch = {ahead: decoders.Decoder(made, 2048, ahead=ahead) for ahead in (True, False)}

    def run(ahead: bool, before: int, count: int) -> list[torch.Tensor]:
        decoder, cache = by_launch[ahead], by_launch[ahead].cache
        sequence = decoder.sequence()
        if before:
            decoder.forward([decoders.prompt(before, 1)], [sequence], prompt=True)
        logits = decoder.prefill(decoders.prompt(count, count), sequence)
        rows = cache_slots(sequence.block_table, cache.block_size, 0, sequence.num_cached)
        found = [logits, *(part.flatten(1, 2)[:, rows] for part in (cache.keys, cache.values))]
        decoder.pool.free(sequence)
        return found

    for before in (0, 5, 300):
        for count in (2, 7, 8, 33, 64):
            for mine, wanted in zip(run(True, before, count), run(False, before, count), strict=True):
                assert torch.equal(mine, wanted), (before, count)


def test_a_graph_is_captured_once_and_replayed() -> None:
    loop = decoders.Decoder(model(None), 256).loop()
    found = []
    for _ in range(2):
        sequence = decoders.asked(decoders.prompt(5), 30)
        loop.add([sequence])
        decoders.finish(loop, [sequence])
        found.append((sequence.token_ids, list(loop._batch.state._graphs)))
    assert found[0] == found[1]
    assert found[0][1] == [(256, 1)]


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_scores_do_not_depend_on_the_batch(quantize: str | None) -> None:
    """Long prompts, in pieces, alone and while others are answered and scored, with beginnings that are known."""
    made = model(quantize)
    stem = decoders.prompt(600, 1)
    prompts = [[*stem, 5, 6, 7], [*stem[:560], 9], decoders.prompt(300, 2), decoders.prompt(40, 3)]

    def scores(engine: Engine, many: list[list[int]]) -> list[object]:
        return [*engine.prompt_logprobs(many, top=2), *engine.next_token_logprobs(many, [5, 9])]

    def engine() -> Engine:
        return decoders.Decoder(made, 8192, chunk=256).engine(max_model_len=1000)

    wanted = [scores(engine(), [ids]) for ids in prompts]
    together = engine()
    running = together.completions(prompts, SamplingParams(max_new_tokens=20, ignore_eos=True))
    next(running)
    found = scores(together, prompts)
    assert [[found[n], found[n + 4]] for n in range(4)] == wanted
    assert len(list(running)) == 3


@pytest.mark.parametrize("batch", [1, 16])
def test_the_kernels_of_a_profiled_step_are_those_of_its_plan(batch: int) -> None:
    """One by one, by name and grid, in each of three replays; their times without waits make up the step."""
    from attribution import attributed, launches
    from decode_step import DecodeStep
    from models import random_model
    from shapes import PRESETS
    from trace_events import gaps, op_times, span, steps

    with torch.inference_mode():
        step = DecodeStep.of(random_model(PRESETS["125m"], "float16", "cuda"), batch, 128)
        found = steps(step.trace(3))
        expected = launches(step.plan(), step.places())
    assert len(found) == 3
    for events in found:
        times = op_times([attributed(events, expected)])
        assert times.keys() == {place.op for place in step.places()}
        assert all(us > 0 for us in times.values())
        assert sum(times.values()) + sum(gaps(events)) == pytest.approx(span(events))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("order", [("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")], ids=" ".join)
def test_graphs_on_a_second_gpu(order: tuple[str, str]) -> None:
    """Whichever captures first in this process, neither captures on the other's stream."""
    rows = [{"left": 20}, {"left": 20, "temperature": 1.0, "seed": 3}]
    prompts = [decoders.prompt(17), decoders.prompt(40)]
    one, two = (run(model(None, device=device), prompts, rows) for device in order)
    assert one == two


def test_a_diff_of_many_sizes_compiles_two_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for whole chunks and one for the rest, whatever the size of a piece and its place: a kernel takes a second."""
    made = []
    usual = JITFunction.run

    def noted(self: Any, *arguments: Any, **options: Any) -> Any:
        compiled = usual(self, *arguments, **options)
        made.append((self.fn.__name__, compiled.hash))
        return compiled

    monkeypatch.setattr(JITFunction, "run", noted)
    adder = CudaAdder("cuda")
    for count in (1, 15, 16, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 16 * CHUNK + 48, 3 * PART + 77):
        views = [adder.buffer(2 * count), adder.buffer(4 * count), adder.buffer(2 * count)]
        adder.add(*map(Operand, views, ("float16", "float32", "float16")))
    assert {name for name, _ in made} == {"_diff_add_kernel"}
    assert len(made) > 10
    assert len(set(made)) == 2


def test_the_demo_model_on_the_gpu(tmp_path: Path) -> None:
    """Recovered on the GPU: the bits of the CPU. Run there in float16: each id is the CPU's best, or a near tie."""
    pair = Path(decoders.__file__).parents[2] / "baize_engine" / "demo_pair"
    for device in ("cpu", "cuda"):
        recover(pair / "base", pair / "diff", tmp_path / device, device=device, progress=False)
    sums = [
        json.loads((tmp_path / device / "baize_manifest.json").read_text())["tensors"] for device in ("cpu", "cuda")
    ]
    assert sums[0] == sums[1]
    questions = [[1, 40 + n, 60, 70 + n] for n in range(12)]
    with Engine.from_pretrained(tmp_path / "cuda", device="cuda") as engine:
        made = engine.generate(questions, SamplingParams(max_new_tokens=24, ignore_eos=True))
    answers = [(prompt, one.token_ids) for prompt, one in zip(questions, made, strict=True)]
    config = ModelConfig.from_folder(tmp_path / "cuda")
    exact = Llama(config, load_weights(tmp_path / "cuda", config, "auto", "cpu", None), reference)
    # an error of logits counts twice, once for each of two ids; the kernels' is at most twice that of torch's float16
    assert forced.behind(exact, answers) <= 2 * 2 * forced.half_error(exact, answers)


@pytest.mark.parametrize(
    ("quantize", "saved"), [(None, False), ("int8", False), ("int4", False), ("int8", True), ("int4", True)]
)
def test_loading_on_the_gpu_is_loading_on_the_cpu(tmp_path: Path, quantize: str | None, saved: bool) -> None:
    """Quantised while it loads, or read as a quantised model that was saved."""
    cfg = tiny.config()
    folder = tiny.write_model(tmp_path / "m", cfg, tiny.state(cfg, 0, torch.float16), shards=2)
    if saved:
        save_quantized(folder, tmp_path / "q", quantize)
        folder, quantize = tmp_path / "q", None
    config = ModelConfig.from_folder(folder)
    there, here = (load_weights(folder, config, "auto", device, quantize) for device in ("cuda", "cpu"))
    for name, weight in there.items():
        if isinstance(weight, torch.Tensor):
            parts = [here[name]] if name in here else [here[part] for part in names.parts(name)]
            assert torch.equal(weight.cpu(), torch.cat(parts)), name
        else:
            wanted = quantized.in_rows(here[name]) if isinstance(weight, quantized.Int4Weight) else here[name]
            assert all(torch.equal(a.cpu(), b) for a, b in zip(weight.stored, wanted.stored, strict=True)), name


def test_the_profile_of_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole script: graphs and their trace, ops by themselves, memory. Counters may be forbidden, which it then says.

    Then a step op by op with ranges, as ncu is given it.
    """
    words = ["--preset", "tiny", "--context", "40", "--repeats", "2", "--steps", "2", "--device", "cuda"]
    page = tmp_path / "page.md"
    monkeypatch.setattr("sys.argv", ["profile_step.py", *words, "--markdown", str(page)])
    assert profile_step.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    ops = {row["op"]: row for row in found["rows"]}
    layer = {"qkv_rope_store", "attention", "linear_add o", "gate_up", "linear_add down"}
    assert ops.keys() == {"step", "advance", "embed", *layer, "head", "sample"}
    assert all(row["us"] > 0 for row in ops.values())
    assert found["start"].keys() == {"weights_s", "first_step_s", "second_state_s", "kernels", "compile_s"}
    assert 0 < found["memory"]["held_GB"] <= found["memory"]["peak_GB"] <= found["memory"]["reserved_GB"]
    if "kernels" in found:
        assert {row["op"] for row in found["kernels"]} == ops.keys() - {"step"}, found["notes"]
    else:
        assert any("(CUPTI)" in note for note in found["notes"])
    assert f"**Step: {ops['step']['us']:.4g} µs**" in page.read_text()
    monkeypatch.setattr("sys.argv", ["profile_step.py", *words, "--nvtx", "--capture_steps", "1:2"])
    assert profile_step.main() == 0
    assert "2 steps op by op, a profiler's range around 1" in capsys.readouterr().out
