"""Chooses the implementation of each op, from a table ordered best first: the first row that can run is taken.

BAIZE_BACKEND forces rows: one name for all ops that have it ("torch"), or pairs ("diff_add=cpp-scalar,linear_add=torch").
A forced row that cannot run raises with its reason; nothing falls back silently. Nothing is probed at import time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from baize_engine.backend.devices import resolve_device
from baize_engine.errors import BackendError

if TYPE_CHECKING:
    from baize_engine import _C
    from baize_engine.backend.adders import Adder
    from baize_engine.backend.plan_ops import PlanOp
    from baize_engine.kernels.quantized import Int4Weight, Int8Weight

VARIABLE = "BAIZE_BACKEND"
# op -> the module under kernels/ with its Triton kernel
DECODER_OPS = {
    "embed": "sample", "qkv_rope_store": "product", "attention": "attention", "linear_add": "product",
    "segment_sums": "product", "add_sums": "sums", "gate_up": "product", "head": "product",
    "sample": "sample", "advance": "sample",
}  # fmt: skip
OPS = ("diff_add", "quantize", *DECODER_OPS)
WAITS_FOR_DEVICE = ("attention", "sample")  # in kernels/reference.py: they read lengths, and whether rows are greedy
Function = Callable[..., Any]  # of kernels/reference.py
Quantizer = Callable[..., "Int8Weight | Int4Weight"]  # `quantize` of kernels/quantized.py


@dataclass(frozen=True)
class Implementation:
    """A row of an op's table. `why_not(device)`: None if it can run, else the reason. `load(device)`: its function."""

    name: str
    why_not: Callable[[str], str | None]
    load: Callable[[str], Any]


class Ops:
    """The decoder's ops on one device: attributes with the names and signatures of the functions in kernels/reference.py.

    rows: {op: the implementation chosen}.
    batch_invariant: whether the bits of a row of activations never depend on the number of rows, even in calls that do not
    ask for that.
    """

    embed: Function
    qkv_rope_store: Function
    attention: Function
    linear_add: Function
    segment_sums: Function
    add_sums: Function
    gate_up: Function
    head: Function
    sample: Function
    advance: Function

    def __init__(self, device: str, rows: Mapping[str, Implementation]) -> None:
        self.device, self.rows = device, rows
        for op in DECODER_OPS:
            setattr(self, op, rows[op].load(device))
        products = (row for op, row in rows.items() if op not in ("sample", "advance"))
        self.batch_invariant = all(row.name.startswith("cpp-") for row in products)

    def compile(self, plan: Sequence[PlanOp]) -> list[Callable[[], object]]:
        """The calls that run `plan` in order and hold its tensors. Adjacent C++ ops of one instruction set become one call."""
        from baize_engine.backend import cpp_ops
        from baize_engine.backend.plan_ops import HostCall

        calls: list[Callable[[], object]] = []
        joined: cpp_ops.Joined | None = None
        for op in plan:
            if isinstance(op, HostCall):
                joined = None
                calls.append(op)
                continue
            function = getattr(self, op.name)
            if not isinstance(function, cpp_ops.Op):
                joined = None
                calls.append(partial(function, **op.operands()))
                continue
            if joined is None or joined.implementation != function.implementation:
                joined = cpp_ops.Joined(function.implementation)
                calls.append(joined)
            joined.append(op)
        return calls


def ops(device: str) -> Ops:
    """The decoder's ops on `device` ("cpu" or "cuda[:n]"). BackendError if one cannot run there."""
    return Ops(device, {op: implementation(op, device) for op in DECODER_OPS})


def reference_ops(device: str) -> Ops:
    """The plain-torch ops, which tests and benchmarks compare others with. On a GPU no graph can capture them."""
    return Ops(device, {op: _torch_row(op) for op in DECODER_OPS})


def best_blocks(vocabulary: int) -> int:
    """The number of blocks in a row of logits; `head` leaves the greatest logit of each for `sample`."""
    from baize_engine.kernels.settings import BEST_BLOCK

    return -(-vocabulary // BEST_BLOCK)


def quantizer(device: str) -> Quantizer:
    """`quantize` of kernels/quantized.py for tensors on `device`; the same bits from every implementation."""
    function: Quantizer = implementation("quantize", device).load(device)
    return function


def launch_settings(device: str) -> str:
    """Where the launch settings of a GPU's kernels come from, as text for `baize info`."""
    import torch

    from baize_engine.kernels import tuned

    try:
        table = tuned.of_device(torch.device(device))
    except ValueError as error:
        return f"none, and no kernel starts: {error}"
    if table is tuned.NO_TABLE:
        return "the rules: no card of this generation was tuned (benchmarks/tune_kernels.py)"
    major, minor = table.capability
    count = sum(len(rows) for rows in table.entries.values())
    return (
        f"{table.name}, {count} entries tuned on {table.gpu} (capability {major}.{minor}, {table.sms} multiprocessors)"
    )


def diff_adder(device: str) -> Callable[[], Adder]:
    """A factory of adders for recovery on `device` ("auto", "cpu" or "cuda[:n]"); each worker makes its own."""
    resolved = resolve_device(device)
    row = implementation("diff_add", resolved)
    factory: Callable[[], Adder] = row.load(resolved)
    return factory


def implementation(op: str, device: str) -> Implementation:
    """The row of `op` that runs on `device`. BackendError if none can, or if the forced one cannot."""
    rows = table(op)
    forced = _forced(op)
    if forced is not None:
        for row in rows:
            if row.name == forced:
                reason = row.why_not(device)
                if reason and forced == "triton" and device == "cpu" and op in DECODER_OPS:
                    reason += ", or TRITON_INTERPRET=1 to debug it on the CPU"
                if reason:
                    raise BackendError(f"{VARIABLE} asks for {forced} for {op} on {device}, which cannot run: {reason}")
                return row
        raise BackendError(
            f"{VARIABLE} asks for {forced} for {op}, which has only: {', '.join(row.name for row in rows)}"
        )
    reasons = []
    for row in rows:
        reason = row.why_not(device)
        if reason is None:
            return row
        reasons.append(f"{row.name}: {reason}")
    raise BackendError(f"nothing runs {op} on {device}: " + "; ".join(reasons))


def table(op: str) -> tuple[Implementation, ...]:
    """All rows of `op`, best first."""
    if op == "diff_add":
        return _diff_add_rows()
    if op == "quantize":
        return (*_cpp_rows(op), _torch_row(op))
    if op in DECODER_OPS:
        return (
            Implementation("triton", _no_triton_decoder, lambda device: _triton(op, device)),
            *_cpp_rows(op),
            _torch_row(op),
        )
    raise BackendError(f"unknown op {op!r}, wanted one of {', '.join(OPS)}")


def _forced(op: str) -> str | None:
    setting = os.environ.get(VARIABLE, "").strip()
    if not setting:
        return None
    general = None
    for part in setting.split(","):
        target, separator, name = part.strip().partition("=")
        if not separator:
            general = target
        elif target not in OPS:
            raise BackendError(f"{VARIABLE}={setting}: unknown op {target!r}, wanted one of {', '.join(OPS)}")
        elif target == op:
            return name
    own = {row.name for row in table(op)}
    if general is not None and general not in own:  # a name applies to the ops that have it
        known = list(dict.fromkeys(row.name for other in OPS for row in table(other)))
        if general not in known:
            raise BackendError(
                f"{VARIABLE}={setting}: there is no backend {general!r}, wanted one of {', '.join(known)} "
                "(without the variable, baize info shows which run here)"
            )
        return None
    return general


def _diff_add_rows() -> tuple[Implementation, ...]:
    return (
        Implementation("triton", _no_triton, _cuda_adder),
        *_cpp_rows("diff_add"),
        Implementation("torch", lambda device: _no_torch(device) or _only_cpu(device), lambda device: _torch_adder()),
    )


def _cpp_rows(op: str) -> list[Implementation]:
    """One for each instruction set of the C++ kernels, in the order of their own table."""

    def cpp(of: _C.Implementation) -> Implementation:
        return Implementation(
            f"cpp-{of.name}", lambda device: _only_cpu(device) or of.why_not(), lambda device: _native(op, of.name)
        )

    from baize_engine._C import implementations

    return [cpp(of) for of in implementations()]


def _native(op: str, name: str) -> Callable[..., Any]:
    if op == "diff_add":
        return _cpp_adder(name)
    from baize_engine.backend import cpp_ops

    return cpp_ops.quantizer(name) if op == "quantize" else cpp_ops.op(op, name)


def _only_cpu(device: str) -> str | None:
    return None if device == "cpu" else f"runs on the CPU, not on {device}"


def _no_triton(device: str) -> str | None:
    if device == "cpu":
        return "needs a GPU"
    from importlib.util import find_spec

    return None if find_spec("triton") else "triton is not installed"


def _no_triton_decoder(device: str) -> str | None:
    """As `_no_triton`, but the CPU can run the kernels if Triton's own variable turns its interpreter on."""
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return _no_triton("cuda")
    return _no_triton(device)


def _no_torch(device: str) -> str | None:
    from importlib.util import find_spec

    return None if find_spec("torch") else "torch is not installed"


def _triton(op: str, device: str) -> Callable[..., Any]:
    from importlib import import_module

    function: Callable[..., Any] = getattr(import_module(f"baize_engine.kernels.{DECODER_OPS[op]}"), op)
    if ":" not in device:
        return function
    import torch

    @wraps(function)
    def there(*arguments: Any, **options: Any) -> Any:
        with torch.cuda.device(device):  # Triton launches on the current device
            return function(*arguments, **options)

    return there


def _torch_row(op: str) -> Implementation:
    def load(device: str) -> Function:
        from baize_engine.kernels import reference

        function: Function = getattr(reference, op)
        return function

    def why_not(device: str) -> str | None:
        if device != "cpu" and op in WAITS_FOR_DEVICE:
            return "it reads values back from the device, which a CUDA graph cannot capture"
        return _no_torch(device)

    return Implementation("torch", why_not, load)


def _cpp_adder(name: str) -> Callable[[], Adder]:
    from baize_engine.backend.adders import CppAdder

    return lambda: CppAdder(name)


def _torch_adder() -> Callable[[], Adder]:
    from baize_engine.backend.adders import TorchAdder

    return TorchAdder


def _cuda_adder(device: str) -> Callable[[], Adder]:
    from baize_engine.backend.cuda_adder import CudaAdder

    return lambda: CudaAdder(device)
