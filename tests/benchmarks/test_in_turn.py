"""Chains of a step's ops under two plans: their results, their bits and their times in turn. No GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import chains
import in_turn
import pytest
import torch
import tuner
from chain_runs import Slow, fake_gpu, spoiled, tiny
from in_turn import Measured, OnGpu, OnHost
from interpreter import Interpreter
from tune_kernels import config_of
from tuner import Cell

from baize_engine.kernels import reference


def test_a_chain_is_what_a_step_does_in_its_layers() -> None:
    chain = tiny()
    names = [name for name, _ in chain.calls["16"]]
    assert names == ["qkv_rope_store", "attention", "linear_add o", "gate_up", "linear_add down"] * chain.units
    assert sum(op.share for op in chain.ops) == pytest.approx(1)
    assert chain.views(chain.ops[:1]) == ["16"]
    assert chain.views(chain.ops[:2]) == ["16", "64"]
    big = chains.layers(reference, config_of(Cell("13b", "int4", 1)), "int4", 1, "meta")
    assert {op.name: op.shape for op in big.ops} == {
        "qkv_rope_store": (15360, 5120), "attention": (40, 40, 128), "linear_add o": (5120, 5120),
        "gate_up": (27648, 5120), "linear_add down": (5120, 13824),
    }  # fmt: skip


@pytest.mark.parametrize("kind", tuner.BITS)
def test_results_depend_on_nothing_that_ran_before(kind: str) -> None:
    chain = tiny(kind)
    for view in ("16", "64", "16"):
        found = []
        for _ in range(2):
            chain.spoil(view)
            for _, call in chain.calls[view]:
                call()
            found.append(chain.results(view))
        assert all(bool(torch.isfinite(one).all()) for one in found[0])
        assert all(in_turn.same_bits(one, two) for one, two in zip(*found, strict=True))
        chain.spoil(view)
        assert all(bool(one.isnan().any()) for one in chain.results(view)[1:])


def test_other_bits_are_seen_at_every_context() -> None:
    chain = tiny(ops=spoiled(lambda how: 1e-2 if how.trigger == "late" else None))
    start = tuner.rules(chain.ops)
    measured = Measured(chain, start, OnHost())
    same = {**start, "gate_up": replace(start["gate_up"], prefetched=0)}
    found = measured.compare(start, same, ["16", "64"])
    assert len(found.best) == len(found.tried) == OnHost.turns
    assert found.best_us > 0
    late = {**start, "gate_up": replace(start["gate_up"], trigger="late")}
    for view in ("16", "64"):
        with pytest.raises(in_turn.OtherBits, match=f"other bits than the rules at {view}: "):
            measured.compare(start, late, [view])


def test_what_is_clearly_slower_is_not_measured_long() -> None:
    chain = tiny(views=(16,))
    start = tuner.rules(chain.ops)
    measured = Measured(chain, start, Slow())
    late = {**start, "gate_up": replace(start["gate_up"], trigger="late")}
    found = measured.compare(start, late, ["16"])
    assert found.best == pytest.approx((5000,) * Slow.turns)
    assert found.tried == pytest.approx((4500,) * Slow.turns)
    found = measured.compare(late, start, ["16"])
    assert (found.best, found.tried) == (pytest.approx((4500,)), pytest.approx((5000,)))


class Uneven(Slow):
    """At 64 tokens of context nothing saves anything."""

    def prepare(self, calls: Any) -> Any:
        run = super().prepare(calls)
        if any(call.keywords.get("max_context") == 64 for call in calls):
            self.us[run] = 1000.0
        return run


def test_times_at_two_contexts_are_averaged() -> None:
    chain = tiny()
    start = tuner.rules(chain.ops)
    late = {**start, "gate_up": replace(start["gate_up"], trigger="late")}
    found = Measured(chain, start, Uneven()).compare(start, late, ["16", "64"])
    assert (found.best_us, found.tried_us) == pytest.approx((5000, 4750))


def test_a_gpus_runs_are_graphs_that_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    said, chain = fake_gpu(monkeypatch, 0.01), tiny(views=(16,))
    start = tuner.rules(chain.ops)
    measured = Measured(chain, start, OnGpu(torch.device("cuda:1")))
    found = measured.compare(start, {**start, "gate_up": replace(start["gate_up"], trigger="late")}, ["16"])
    calls = 5 * chain.units
    assert found.best == pytest.approx((50.0,) * OnGpu.turns)  # 5 calls of 10 us a layer
    assert found.tried == pytest.approx(found.best)
    assert said[0] == f"aside {calls}"  # each call once, though a run has 1 ms of them
    assert set(said[1:]) == {f"aside {calls}", "wait cuda:1"}


def test_the_gpus_ops_have_equal_bits_in_a_chain(triton: Interpreter) -> None:
    found = triton.run("chain_runs", "interpreted", "int8")[0]
    assert found == ["attention", "gate_up", "linear_add down", "linear_add o", "qkv_rope_store"]
