"""Every launch setting that a tuner may choose: equal bits through the interpreter, and machine code without spills.

The interpreter knows no warps, stages, triggers or prefetches; that these change no bit is checked on the card by the tuner.
What it does see: tiles of every size, who makes the norm, how a split of attention is loaded, how thresholds are searched.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import attention_case
from attention_inputs import paged
from compile_gate import GateCase, compile_case
from interpreter import Interpreter
from product_cases import product_case
from product_inputs import ACTIVATIONS, EPS, case, matrix, rand
from sample_cases import sample_case
from sample_inputs import FILTERS, arguments, logits

from baize_engine.kernels import settings
from baize_engine.kernels.settings import AttentionSettings, ProductSettings

BITS = {"same": 16, "int8": 8, "int4": 4}
TILED = (1, 16, 64)  # numbers of rows that have choices of their own


def one_by_one(rule: Any, choices: settings.Choices) -> list[tuple[str, Any]]:
    """The rule with one choice at a time, and with the last of every aspect together."""
    found = [(aspect, replace(rule, **values)) for aspect, many in choices for values in many]
    together = rule
    for _, many in choices:
        together = replace(together, **many[-1])
    return [*found, ("together", together)]


def products(op: str, kind: str, rows: int) -> list[tuple[str, ProductSettings]]:
    bits = BITS[kind]
    return one_by_one(settings.product(op, bits, rows), settings.product_choices(op, bits, rows))


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize(("rows", "activation"), [(1, "fp16"), (12, "bf16"), (40, "fp16")])
def test_gate_up_has_the_same_bits(triton: Interpreter, activation: str, rows: int, kind: str) -> None:
    """A product with a norm before it and pairs behind it; K and N are no multiples of any tile."""
    dtype, hidden, inner = ACTIVATIONS[activation], 328, 86
    x, norm = case(rows, hidden, dtype)
    weight, out = matrix(2 * inner, hidden, kind, dtype), torch.full((rows, inner), float("nan"), dtype=dtype)
    given = (x, norm, EPS, [weight])
    wanted, _ = triton.call("product", "gate_up", *given, out=out)
    assert bool(torch.isfinite(wanted).all())
    for aspect, how in products("gate_up", kind, rows):
        got, _ = triton.run("tuned_calls", "call", "gate_up", how, "product", "gate_up", *given, out=out)[0]
        assert torch.equal(got, wanted), (aspect, how)


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("rows", [1, 70])
def test_linear_add_has_the_same_bits(triton: Interpreter, rows: int, kind: str) -> None:
    x, _ = case(rows, 328, torch.float16)
    weight, before = matrix(72, 328, kind, torch.float16), rand(rows, 72, seed=9, dtype=torch.float16)

    def run(how: ProductSettings) -> torch.Tensor:
        options = {"out": before.clone(), "batch_invariant": True}
        return triton.run("tuned_calls", "call", "linear_add", how, "product", "linear_add", x, weight, **options)[0][0]

    wanted = run(settings.product("linear_add", BITS[kind], rows))
    for aspect, how in products("linear_add", kind, min(rows, 64)):
        assert torch.equal(run(how), wanted), (aspect, how)


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "rows"), [(4, 2, 16, 1), (3, 1, 24, 12), (4, 2, 16, 40)])
def test_qkv_rope_store_has_the_same_bits(
    triton: Interpreter, heads: int, kv_heads: int, dim: int, rows: int, kind: str
) -> None:
    """The epilogue that pairs halves of heads, of which a tile may hold several or a part."""
    x, norm = case(rows, 96, torch.float16)
    weight = matrix((heads + 2 * kv_heads) * dim, 96, kind, torch.float16)
    angle = torch.arange(128)[:, None] * torch.arange(1, dim // 2 + 1)[None, :] / 7
    places = torch.randperm(96, generator=torch.Generator().manual_seed(1))[:rows]

    def run(how: ProductSettings) -> list[torch.Tensor]:
        caches = [torch.full((6, 16, kv_heads, dim), 7.0, dtype=torch.float16) for _ in range(2)]
        given = (x, norm, EPS, [weight], angle.cos(), angle.sin(), places, *caches, places)
        options = {"q": torch.zeros(rows, heads, dim, dtype=torch.float16), "batch_invariant": True}
        op = "qkv_rope_store"
        _, after = triton.run("tuned_calls", "call", op, how, "product", op, *given, **options)[0]
        return [after[7], after[8], after[10]]

    wanted = run(settings.product("qkv_rope_store", BITS[kind], rows))
    for aspect, how in products("qkv_rope_store", kind, rows):
        for got, right in zip(run(how), wanted, strict=True):
            assert torch.equal(got, right), (aspect, how)


@pytest.mark.parametrize("rows", [1, 12])
def test_the_head_has_the_same_bits_and_bests(triton: Interpreter, rows: int) -> None:
    x, norm = case(rows, 96, torch.float16)
    weight = matrix(107, 96, "same", torch.float16)

    def run(how: ProductSettings) -> list[torch.Tensor]:
        options = {"out": torch.zeros(rows, 107), "best": torch.zeros(rows, 4, dtype=torch.int32)}
        given = (x, norm, EPS, weight)
        got, after = triton.run("tuned_calls", "call", "head", how, "product", "head", *given, **options)[0]
        return [got, after[-1]]

    wanted = run(settings.product("head", 16, rows))
    for aspect, how in products("head", "same", rows):
        for got, right in zip(run(how), wanted, strict=True):
            assert torch.equal(got, right), (aspect, how)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "lens"),
    [(4, 4, 16, [1, 64, 65]), (4, 2, 8, [300, 5, 256, 129]), (2, 2, 128, [64, 520]), (6, 1, 24, [17, 128])],
)
def test_attention_has_the_same_bits(
    triton: Interpreter, heads: int, kv_heads: int, dim: int, lens: list[int], kind: str
) -> None:
    given = (*paged([1] * len(lens), lens, heads, kv_heads, dim, ACTIVATIONS[kind]), dim**-0.5)
    out = torch.full_like(given[0], float("nan"))
    wanted, _ = triton.call("attention", "attention", *given, out=out)
    assert bool(torch.isfinite(wanted).all())
    for aspect, how in one_by_one(settings.attention(2), settings.attention_choices()):
        got, _ = triton.run("tuned_calls", "call", "attention", how, "attention", "attention", *given, out=out)[0]
        assert torch.equal(got, wanted), (aspect, how)


@pytest.mark.parametrize("chosen", [one for one in FILTERS if {"top_k", "top_p"} & one.keys()], ids=str)
@pytest.mark.parametrize("vocabulary", [97, 2100])
def test_the_sampler_chooses_the_same(triton: Interpreter, vocabulary: int, chosen: dict[str, float]) -> None:
    given = (logits(vocabulary), *arguments(**chosen).values())
    wanted, _ = triton.call("sample", "sample", *given)
    for aspect, how in one_by_one(settings.sample(), settings.sample_choices()):
        got, _ = triton.run("tuned_calls", "call", "sample", how, "sample", "sample", *given)[0]
        assert torch.equal(got, wanted), (aspect, how)


# The compile gate


def variants() -> list[GateCase]:
    """Each choice at 13B, the rest being the rule's: as others than Hopper launch it, and as Hopper does; and with a vocabulary
    that no tile divides. How many tiles are prefetched is a number in a loop before all else, and takes no registers."""
    found = []
    ops = ("gate_up", "linear_add down", "linear_add o", "qkv_rope_store", "head")
    for op, (kind, bits), rows in itertools.product(ops, (("fp16", 16), ("int8", 8), ("int4", 4)), TILED):
        name = op.split()[0]
        choices = settings.product_choices(name, bits, rows)
        for number, (aspect, how) in enumerate(one_by_one(settings.product(name, bits, rows), choices)):
            if aspect == "prefetched":
                continue
            for dependent in (False, True) if aspect != "trigger" else (True,):
                found.append(product_case("13b", op, kind, rows, dependent, how, f"{aspect} {number}"))
            if op == "head" and aspect == "tile":
                found.append(product_case("13b", op, kind, rows, True, how, f"of 32001, {number}", 32001))
    for number, (aspect, how) in enumerate(one_by_one(settings.attention(2), settings.attention_choices())):
        for op, dependent in itertools.product(("decode", "join"), (False, True)):
            found.append(attention_case(op, 40, 1, "fp16", how, dependent, f"{aspect} {number}"))
    for number, (aspect, chosen) in enumerate(one_by_one(settings.sample(), settings.sample_choices())):
        for trigger, many in itertools.product((None, "early"), (32000, 32001, 128256)):
            found.append(sample_case(chosen, trigger, f"{aspect} {number} of {many}", many))
    return found


IN_CI = ("gate_up 13b fp16 x1 trigger", "attention decode fp16 40/40 fetch", "sample warps 0 of 32000")


@pytest.mark.parametrize(
    ("chosen", "target"),
    [
        pytest.param(
            one, target, id=f"{one.name}-sm{target}", marks=() if one.name.startswith(IN_CI) else pytest.mark.slow
        )
        for one in variants()
        for target in one.targets
    ],
)
def test_machine_code(chosen: GateCase, target: int) -> None:
    compiled = compile_case(chosen, target)
    print(compiled.row())
    assert compiled.problems() == []


def test_a_trigger_at_the_wrong_place_is_noticed() -> None:
    late = replace(settings.product("gate_up", 16, 1), trigger="late")
    compiled = compile_case(product_case("13b", "gate_up", "fp16", 1, True, late), 90)
    assert compiled.problems() == []
    said = replace(compiled, case=replace(compiled.case, pdl="early")).problems()
    assert said == ["gate_up 13b fp16 x1 pdl for sm_90: lets the next kernel start late, wanted early"]


def test_a_read_before_the_wait_is_allowed_where_it_is_meant() -> None:
    how = AttentionSettings(64, fetch_first=True, trigger="first")
    compiled = compile_case(attention_case("decode", 40, 1, "fp16", how, True), 90)
    assert compiled.problems() == []
    said = replace(compiled, case=replace(compiled.case, reads_early=False)).problems()
    assert len(said) == 1
    assert "LDG before it waits" in said[0]
