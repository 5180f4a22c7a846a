"""Ops of plans hold the operands of their functions: names, order and defaults are those of kernels/reference.py."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, FrozenInstanceError, fields

import pytest
import torch

from baize_engine.backend import choose
from baize_engine.backend.plan_ops import Embed, HostCall, LinearAdd, PlanOp
from baize_engine.kernels import reference

KINDS = [kind for kind in PlanOp.__subclasses__() if kind is not HostCall]  # of which a backend knows nothing


def test_every_op_of_the_decoder_has_its_class() -> None:
    assert sorted(kind.name for kind in KINDS) == sorted(choose.DECODER_OPS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_operands_are_the_parameters_of_the_reference(kind: type[PlanOp]) -> None:
    wanted = inspect.signature(getattr(reference, kind.name)).parameters
    assert [operand.name for operand in fields(kind)] == list(wanted)
    for operand in fields(kind):
        parameter = wanted[operand.name]
        assert operand.kw_only == (parameter.kind is inspect.Parameter.KEYWORD_ONLY), operand.name
        assert operand.default == (MISSING if parameter.default is inspect.Parameter.empty else parameter.default)


def test_an_op_is_called_with_its_operands() -> None:
    """They are handed on as they are: a plan's memory lies at fixed addresses."""
    x, weight, out = torch.randn(2, 8), torch.randn(3, 8), torch.ones(2, 3)
    op = LinearAdd(x, weight, out=out)
    assert op.operands()["out"] is out
    reference.linear_add(**op.operands())
    assert torch.equal(out, 1 + x @ weight.t())
    with pytest.raises(FrozenInstanceError):
        op.x = x  # type: ignore[misc]
    assert op != LinearAdd(x, weight, out=out)  # by identity: tensors have no single truth


def test_a_call_of_the_host_has_its_place_among_the_ops() -> None:
    ids, table, out, seen = torch.tensor([1]), torch.randn(4, 8), torch.zeros(1, 8), torch.zeros(1, 8)
    weight = torch.randn(8, 8)
    plan = [Embed(ids, table, out=out), HostCall(seen.copy_, (out,)), LinearAdd(out.clone(), weight, out=out)]
    for call in choose.ops("cpu").compile(plan):
        call()
    assert torch.equal(seen, table[ids])


def test_a_compiled_plan_does_what_its_ops_do_one_by_one() -> None:
    ids, table, out = torch.tensor([2, 0]), torch.randn(4, 8), torch.zeros(2, 8)
    weight, total = torch.randn(3, 8), torch.zeros(2, 3)
    for ops in (choose.ops("cpu"), choose.reference_ops("cpu")):
        total.zero_()
        for call in ops.compile([Embed(ids, table, out=out), LinearAdd(out, weight, out=total)]):
            call()
        assert torch.equal(out, table[ids])
        assert torch.allclose(total, table[ids] @ weight.t(), atol=1e-5)
