"""The model of the card: occupancy, waves and Little's law by hand, the bytes of model/cost.py, and sane directions."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import compiled
import kernel_models as kernels
import predict
import pytest
from assets import REPO
from card_model import Constants, Estimate, Machine, waves
from cards import CARDS
from compiled import Code, Loop
from kernel_models import Before, before
from reports import cell
from shapes import PRESETS
from step_ops import OPS

from baize_engine.kernels import settings
from baize_engine.model import cost
from baize_engine.model.config import ModelConfig

H100, A100, L40S = CARDS["h100"], CARDS["a100"], CARDS["l40s"]
PRODUCTS = ("qkv_rope_store", "linear_add o", "gate_up", "linear_add down", "head")
LATE = {"products": {"trigger": "late"}}


def step_us(*arguments: object, **options: object) -> float:
    return sum(row["us"] for row in predict.step(*arguments, **options))


def by_op(rows: list[dict]) -> dict[str, dict]:
    return {row["op"]: row for row in rows}


# The card, by hand.


@pytest.mark.parametrize(
    ("card", "registers", "shared", "warps", "wanted"),
    [
        (H100, 56, 41984, 2, 5),  # 233472 // (41984 + 1024)
        (A100, 55, 41984, 2, 3),  # 167936 // 43008
        (H100, 255, 0, 4, 2),  # 65536 // (256 * 128)
        (H100, 32, 0, 8, 8),  # 64 warps
        (H100, 16, 0, 1, 32),  # as many programs as there can be
        (L40S, 16, 0, 1, 24),
        (L40S, 32, 0, 8, 6),  # 48 warps
    ],
)
def test_programs_that_a_multiprocessor_holds(card, registers: int, shared: int, warps: int, wanted: int) -> None:
    assert Machine(card).resident(Code(registers, shared, 100), warps) == wanted


def test_a_program_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="300000 bytes of shared memory does not fit a multiprocessor of H100 SXM"):
        Machine(H100).resident(Code(32, 300000, 100), 4)


def test_the_rate_of_a_stream() -> None:
    m = Machine(H100, Constants(streaming=0.9, loaded_us=0.5, l2_bytes=40.0, clock=0.5))
    assert m.rate(660, 24000) == pytest.approx(3350e3 * 0.9)  # long enough
    assert m.rate(132, 2000) == pytest.approx(132 * 2000 / 0.5)  # too few bytes under way
    assert m.rate(10, 1e9) == pytest.approx(10 * 40 * 990)  # too few multiprocessors: 40 bytes a cycle of 0.99 GHz


def test_waves_and_their_tail() -> None:
    assert waves(864, 660) == [660, 204]
    assert waves(660, 660) == [660]
    assert waves(5, 660) == [5]
    m = Machine(H100, Constants(streaming=0.9, loaded_us=0.5, l2_bytes=40.0, clock=0.5))
    # a whole wave of 660 reads 66 MB at 3015 GB/s, one program more its 100 kB at 39.6 bytes a nanosecond
    assert kernels._by_memory(m, 661, 660, 1e5, 24000) == pytest.approx(66e6 / 3015e3 + 1e5 / 39.6e3)


def test_only_a_wave_begun_has_a_tail() -> None:
    rows = by_op(predict.step(H100, "7b"))
    assert (rows["gate_up"]["programs"], rows["gate_up"]["at_once"]) == (
        688,
        660,
    )  # 28 programs for 132 multiprocessors
    assert rows["gate_up"]["tail"] > 0
    assert rows["linear_add o"]["programs"] == 128
    assert rows["linear_add o"]["tail"] == 0


def test_a_loop_is_bound_by_a_lone_warp_or_by_its_scheduler() -> None:
    m = Machine(H100, Constants(clock=0.5, alone_cycles=2.0, issue=0.5, barrier_cycles=30.0, tensor_cycles=33.0))
    loop = Loop(100, 8, 2)
    assert m.loop_us(loop, 2, 1, chained=8) == pytest.approx((264 + 60) / 990)  # eight tensor instructions in a row
    assert m.loop_us(loop, 2, 1) == pytest.approx((200 + 60) / 990)  # 100 / 0.5 cycles and its barriers
    assert m.loop_us(loop, 2, 10) == pytest.approx(100 / 0.5 * 5 / 990)  # five warps a scheduler
    assert replace(m, card=A100).tensor_interval == pytest.approx(8, rel=0.01)  # 312 TFLOP/s by 432 schedulers


def test_what_stays_in_the_cache() -> None:
    m = Machine(replace(H100, l2=100), Constants(l2_kept=0.5))
    room = 50 * 2**20
    assert m.kept(1e6, room - 1e6) == 1
    assert m.kept(1e6, room - 0.25e6) == pytest.approx(0.25)
    assert m.kept(1e6, 2 * room) == 0


def test_what_a_product_leaves_to_the_next() -> None:
    whole = Estimate(10, "bandwidth", 1, 0, read=864.0, programs=864, slots=660, ending=0.2)
    assert before(whole, "early") == Before("early", left=204.0, room=1 - 204 / 660, quiet_us=0.2)
    assert before(replace(whole, programs=660), "late").room == 0


# A step.


@pytest.mark.parametrize("preset", ["7b", "13b"])
@pytest.mark.parametrize("card", [H100, A100], ids=lambda card: card.key)
@pytest.mark.parametrize("kind", predict.BITS)
def test_a_step_has_every_op_once_and_keeps_to_the_specification(card, preset: str, kind: str) -> None:
    for batch in (1, 2, 8, 16, 64):
        rows = predict.step(card, preset, kind, batch)
        assert [row["op"] for row in rows] == OPS
        assert all(row["us"] > 0 and row["us"] == row["calls"] * row["us_call"] for row in rows)
        assert all(row["us_call"] == pytest.approx(row["body"] + row["latency"] + row["tail"]) for row in rows)
        whole = predict.totals(rows, card, preset, kind, batch, 128)
        assert whole["tokens_s"] == pytest.approx(batch / whole["step_ms"] * 1e3)
        moved = sum(row["calls"] * row["MB"] for row in rows) / 1e3
        assert moved / whole["step_ms"] * 1e3 < card.bandwidth * Constants().streaming
        assert whole["of_specified"] < Constants().streaming


@pytest.mark.parametrize("kind", predict.BITS)
@pytest.mark.parametrize(("card", "change"), [(A100, None), (H100, LATE)], ids=["a100", "h100 late"])
def test_its_bytes_are_those_of_the_cost(card, change, kind: str) -> None:
    """Weights and cache; activations, which come out of L2, are what a second row adds to the cost."""
    shape = PRESETS["13b"]
    config = ModelConfig.from_dict(shape.config(shape.vocabulary, "float16"))
    batch, context = 4, 256
    one, two = ({each.name: each.read for each in cost.decode_step(config, kind, rows, context)} for rows in (1, 2))
    rows = by_op(predict.step(card, "13b", kind, batch, context, change=change))
    for op in PRODUCTS:
        assert rows[op]["calls"] * rows[op]["MB"] * 1e6 == pytest.approx(2 * one[op] - two[op], rel=1e-12), op
    cached = batch * context * cost.kv_bytes_per_token(config)
    assert rows["attention"]["calls"] * rows["attention"]["MB"] * 1e6 == pytest.approx(cached)
    every = sum(each.bytes for each in cost.decode_step(config, kind, batch, context))
    moved = sum(row["calls"] * row["MB"] * 1e6 for row in rows.values())
    assert 0.985 < moved / every <= 1


def test_weights_fetched_too_early_come_twice() -> None:
    early, late = by_op(predict.step(H100, "13b")), by_op(predict.step(H100, "13b", change=LATE))
    for op in ("qkv_rope_store", "gate_up", "head"):  # behind a product that streams more than the L2 cache holds
        assert early[op]["MB"] > late[op]["MB"]
        assert early[op]["us"] > late[op]["us"]
    assert early["linear_add o"]["MB"] == late["linear_add o"]["MB"]  # behind attention, which streams little


@pytest.mark.parametrize("key", ["h100", "a100", "l40s", "rtx4090"])
@pytest.mark.parametrize(("kind", "batch"), [("float16", 1), ("float16", 64), ("int8", 1), ("int4", 1), ("int4", 8)])
def test_more_bandwidth_is_never_slower(key: str, kind: str, batch: int) -> None:
    card = CARDS[key]
    for change in (None, LATE, {**LATE, "attention": {"fetch_first": True}}):
        last = None
        for share in (0.25, 0.5, 0.9, 1.0, 1.1, 2.0, 8.0):
            rows = predict.step(replace(card, bandwidth=card.bandwidth * share), "1b", kind, batch, change=change)
            now = {row["op"]: row["us"] for row in rows}
            assert last is None or all(now[op] <= last[op] * (1 + 1e-12) for op in now), share
            last = now


@pytest.mark.parametrize(
    ("card", "batch"),
    [(H100, 1), (A100, 1), (H100, 7), (A100, 64)],
    ids=["h100", "a100", "h100 7 rows", "a100 64 rows"],
)
def test_more_context_is_never_faster(card, batch: int) -> None:
    times = [
        by_op(predict.step(card, "1b", "float16", batch, n))["attention"]["us"]
        for n in range(1, 2049, 3 if batch > 1 else 1)
    ]
    assert all(b >= a * (1 - 1e-12) for a, b in pairwise(times))
    assert times[-1] > times[0]


def test_constants_have_their_say() -> None:
    """Half or twice any of them changes some step, but for what stands between steps."""
    kinds = (("13b", "int4", 1), ("13b", "int8", 1), ("13b", "float16", 64), ("7b", "int8", 64))
    cases = [(card, *kind, 1024) for card in (H100, A100) for kind in kinds]

    def times(constants: Constants) -> list[float]:
        return [step_us(*case, constants, change, drawn=True) for case in cases for change in (None, LATE)]

    as_they_are = times(Constants())
    for each in fields(Constants):
        changed = [times(Constants().changed({each.name: each.default * factor})) for factor in (0.5, 2)]
        assert (changed == [as_they_are] * 2) == (each.name == "between_us"), each.name
        assert each.metadata["source"]
    rows = predict.step(H100, "1b")
    slow = predict.totals(rows, H100, "1b", "float16", 1, 128, Constants(between_us=102.5))
    assert slow["step_ms"] - predict.totals(rows, H100, "1b", "float16", 1, 128)["step_ms"] == pytest.approx(0.1)


def test_fewer_bits_are_faster_and_drawing_is_slower() -> None:
    """Look-ups bound int4's products on a card: by this model they are slower than int8's, which read twice the bytes."""
    float16, int8, int4 = (step_us(H100, "13b", kind) for kind in ("float16", "int8", "int4"))
    assert float16 > max(int8, int4)
    assert step_us(H100, "13b", drawn=True) > step_us(H100, "13b")


@pytest.mark.parametrize("kind", predict.BITS)
def test_every_rule_has_its_code(kind: str) -> None:
    for card in (H100, A100):
        assert all(step_us(card, "1b", kind, rows) > 0 for rows in range(1, 129))


# Comparing, and what it prints.


def test_prediction_beside_measurement() -> None:
    predicted = [{"op": "gate_up", "us": 100.0}, {"op": "advance", "us": 3.0}, {"op": "head", "us": 10.0}]
    measured = [
        {"op": "head", "us": 15.0, "calls": 1},
        {"op": "gate_up", "us": 50.0},
        {"op": "host", "us": 9.0},
        {"op": "head", "problem": "x"},
    ]
    assert predict.compare(predicted, measured) == [
        {"op": "gate_up", "predicted_us": 100.0, "measured_us": 50.0, "ratio": 0.5},
        {"op": "head", "predicted_us": 10.0, "measured_us": 15.0, "ratio": 1.5},
    ]
    rows = predict.step(H100, "7b")
    assert [row["ratio"] for row in predict.compare(rows, rows)] == [1.0] * len(OPS)


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((H100, "8b"), {}, "there is no preset '8b', wanted one of tiny"),
        ((H100, "7b", "fp8"), {}, "kind is 'fp8', wanted one of float16"),
        ((H100, "7b", "int8", 0), {}, "batch 0, context 128: wanted at least 1"),
        ((H100, "7b", "int8", 1, 2049), {}, "context 2049: wanted at least 1, and at most 2048"),
        ((CARDS["l4"], "13b"), {}, "13b float16, batch 1 takes 26.1 GB, L4 has 24 GB"),
        ((H100, "7b"), {"change": {"products": {"block_n": 48}}}, "block_n is 48, wanted one of 16, 32, 64"),
        ((H100, "7b"), {"change": {"head": {"block_k": 32}}}, "compiled.json has no 'product norm 16 bits 32x32x8 2 warps"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named(arguments: tuple, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        predict.step(*arguments, **options)


def test_a_change_of_an_unknown_op_is_named() -> None:
    with pytest.raises(ValueError, match="there is no op 'gateup' to change, wanted one of products, qkv_rope_store"):
        predict.step(H100, "7b", change={"gateup": {"trigger": "late"}})


def test_constants_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match="there is no constant 'speed', wanted one of streaming, memory_us"):
        Constants().changed({"speed": 1.0})
    with pytest.raises(ValueError, match=r"streaming is 0.0, wanted more than 0"):
        Constants(streaming=0.0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--card", "v100"], "--card: invalid choice: 'v100'"),
        (["--preset", "8b"], "--preset: invalid choice: '8b'"),
        (["--set", "speed=1"], "there is no constant 'speed'"),
        (["--set", "streaming=fast"], "'streaming=fast': could not convert"),
        (["--set", "streaming=-1"], "streaming is -1.0, wanted more than 0"),
        (["--context", "4096"], "at most 2048 of context"),
        (["--card", "rtx4090"], "13b float16, batch 1 takes 26.1 GB, GeForce RTX 4090 has 24 GB"),
    ],
)
def test_bad_options_are_named(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["predict.py", *words])
    with pytest.raises(SystemExit) as stopped:
        predict.main()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--variants"]], ids=["step", "variants"])
def test_json_holds_the_printed_rows(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    file = tmp_path / "predicted.json"
    line = ["predict.py", "--card", "a100", "--preset", "7b", "--set", "streaming=0.88", "--json", str(file), *words]
    monkeypatch.setattr(sys, "argv", line)
    assert predict.main() == 0
    printed = capsys.readouterr().out.splitlines()
    whole = json.loads(file.read_text())
    assert json.loads(printed[-1]) == whole
    assert printed[0].split() == list(whole["rows"][0])
    wanted = [" ".join(" ".join(cell(value).split()) for value in row.values()) for row in whole["rows"]]
    assert [" ".join(row.split()) for row in printed[1 : 1 + len(wanted)]] == wanted
    assert (whole["bench"], whole["card"], whole["preset"], whole["predicted"]) == ("predict", "a100", "7b", True)
    assert whole["constants"]["streaming"] == 0.88
    if not words:
        rows = predict.step(A100, "7b", constants=Constants(streaming=0.88))
        assert whole["rows"] == rows
        assert whole["of_specified"] == predict.totals(rows, A100, "7b", "float16", 1, 128)["of_specified"]


@pytest.mark.parametrize("kind", ["float16", "int8", "int4"])
def test_variants_cover_the_audit_and_know_the_rule(kind: str) -> None:
    rows = predict.variants(H100, "13b", kind, 128, Constants())
    assert {row["prediction"] for row in rows} == {0, 1, 2, 3, 4, 5}
    rule = settings.product("gate_up", predict.BITS[kind], 1)
    same = next(row for row in rows if row["variant"] == f"trigger {rule.trigger}, {rule.prefetched} tiles ahead")
    assert same["faster_%"] == 0
    assert sum(row["faster_%"] != 0 for row in rows) > len(rows) / 2
    assert all(row["variant_ms"] == pytest.approx(row["rule_ms"] / (1 + row["faster_%"] / 100)) for row in rows)


def test_nothing_of_it_needs_torch() -> None:
    code = (
        "import sys, predict; predict.step(predict.CARDS['h100'], '13b');"
        "print([name for name in ('torch', 'triton') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO / "benchmarks",
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPO)},
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# The code that the compiler made.


def test_loops_of_a_disassembly() -> None:
    sass = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E R2, [R4] ;
.L_x_1:
        /*0020*/                   HMMA.16816.F32 R8, R4, R2, R8 ;
        /*0030*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0040*/              @!P0 BRA `(.L_x_1) ;
        /*0050*/               @P1 BRA `(.L_x_0) ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   BRA `(.L_x_2);
"""
    assert compiled.loops(sass) == (Loop(8, 1, 1), (Loop(3, 1, 1),))
    made = Code(32, 0, 8, (Loop(2), Loop(3, 1, 1)))
    assert (made.products, made.straight) == (Loop(3, 1, 1), 3)


def test_a_loop_that_the_compiler_unrolled() -> None:
    assert compiled.of_one_tile(Loop(100, 8, 2), (Loop(30, 8, 2),), 40) == (Loop(100, 8, 2), (Loop(30, 8, 2),))
    assert compiled.of_one_tile(Loop(100, 8, 4), (Loop(7),), 4) == (Loop(25, 8, 4), (Loop(7), Loop(25, 2, 1)))


def test_the_table_is_of_these_kernels() -> None:
    """Constants as they stand, and a case compiled anew: other versions of Triton may take a few registers more or less."""
    pytest.importorskip("triton")
    from compile_gate import compile_case
    from product_cases import product_case

    from baize_engine.kernels import attention, norm

    found = [compiled.constant(name) for name in ("SPLIT", "JOINED", "LANES")]
    assert found == [attention.SPLITS[2], attention.JOINED, norm.LANES]
    assert {name for name, *_ in compiled.products()} <= {name for name, _ in compiled.read()}
    how = settings.product("linear_add", 16, 1)
    for target in compiled.TARGETS:
        made = compile_case(product_case("13b", "linear_add o", "fp16", 1, target >= 90, how), target)
        kept = compiled.read()[compiled.product_name(how, 16, 1, False), target]
        whole, inner = compiled.loops(made.sass)
        loop = next(each for each in inner if each.tensor)
        assert (loop.tensor, loop.barriers) == (kept.products.tensor, kept.products.barriers)
        assert made.registers == pytest.approx(kept.registers, rel=0.25)
        assert made.shared == pytest.approx(kept.shared, rel=0.1)
        assert (whole.instructions, loop.instructions) == pytest.approx(
            (kept.instructions, kept.products.instructions), rel=0.25
        )
