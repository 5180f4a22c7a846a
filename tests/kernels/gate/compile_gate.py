"""The compile gate: what a kernel becomes for a GPU that is not here, and what must be true of it.

A kernel is a @triton.jit function of kernels/ whose name ends in `_kernel`; one that gate_cases.py has no case of fails the
gate. Compiling needs no GPU, but a process without TRITON_INTERPRET.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from baize_engine import kernels
from baize_engine.kernels.launch import PDL_CODES

WARPS = {80: 64, 86: 48, 89: 48, 90: 64}  # resident at most on a multiprocessor
SHARED = {80: 167936, 86: 102400, 89: 102400, 90: 233472}  # bytes of a multiprocessor; each block takes 1024 for itself
SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448}  # bytes a block may have; the compiler does not check
TARGETS = (80, 89, 90)


@dataclass(frozen=True)
class GateCase:
    """One kernel at one shape, and what is expected of its machine code."""

    name: str
    kernel: Any
    signature: Mapping[str, str]  # argument -> Triton type, constexprs left out
    constexprs: Mapping[str, Any]
    aligned: tuple[str, ...] = ()  # arguments divisible by 16
    num_warps: int = 4
    num_stages: int = 3
    wide_loads: bool = True  # streaming: 16-byte loads from global memory
    wide_stores: bool = True
    dot: bool = False  # tensor-core instructions
    warp_level: bool = False  # only those of a warp, not Hopper's wgmma, whose sums may differ in their last bits
    denormals: bool = True  # kept, not flushed to zero
    ci: bool = False  # the one shape that CI compiles; `make gate` compiles all
    pdl: str | None = None  # compiled for a dependent launch, which GPUs have from sm_90 on; when the next may start
    reads_early: bool = False  # it may read before it waits, what no kernel of a step writes
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def targets(self) -> tuple[int, ...]:
        return tuple(target for target in TARGETS if target >= 90 or not self.pdl)


@dataclass(frozen=True)
class Compiled:
    """Figures of one case for one target. `loads` and `stores` are the widths (bits) of its global accesses, copies to
    shared memory (LDGSTS) among the loads."""

    case: GateCase
    target: int
    registers: int
    stack: int
    shared: int
    loads: tuple[int, ...]
    stores: tuple[int, ...]
    sass: str

    def problems(self) -> list[str]:
        """What is not as the case expects; empty for a kernel that passes."""
        found = []
        if self.stack or re.search(r"\b(LDL|STL)\b", self.sass):
            found.append(f"spills to local memory (stack {self.stack} bytes)")
        if self.shared > SHARED_LIMIT[self.target]:
            found.append(f"{self.shared} bytes of shared memory, sm_{self.target} has {SHARED_LIMIT[self.target]}")
        for kind, wanted, widths in (
            ("load", self.case.wide_loads, self.loads),
            ("store", self.case.wide_stores, self.stores),
        ):
            if wanted and 128 not in widths:
                found.append(f"no 16-byte {kind} (widths {sorted(set(widths))} bits)")
        if self.case.dot and not re.search(r"\bH?G?MMA\b|\bHMMA\b|\bHGMMA\b|\bIMMA\b", self.sass):
            found.append("no tensor-core instruction")
        if self.case.warp_level and "GMMA" in self.sass:
            found.append("Hopper's wgmma where a warp's tensor instructions were meant")
        if self.case.pdl:
            before, waits, _ = self.sass.partition("ACQBULK")
            if not waits:
                found.append("does not wait for the kernel before it")
            elif not self.case.reads_early and (
                early := re.search(r"\b(LDG|LDGSTS|STG|LD|ST|ATOMG?|RED|UTMALDG|UBLKCP)\b", before)
            ):
                found.append(f"{early.group(1)} before it waits for the kernel before it")
            if (place := self._trigger()) != self.case.pdl:
                found.append(f"lets the next kernel start {place}, wanted {self.case.pdl}")
        if self.case.denormals and re.search(r"\b(FADD|FMUL|FFMA)\.FTZ\b", self.sass):
            found.append("flushes denormals")
        return [f"{self.case.name} for sm_{self.target}: {problem}" for problem in found]

    def _trigger(self) -> str:
        """When the next kernel may start, by the place of PREEXIT among the waits and the products."""
        before, there, _ = self.sass.partition("PREEXIT")
        if not there:
            return "at its end"
        if "ACQBULK" not in before:
            return "first"
        return "late" if re.search(r"\b[HI]?MMA\b", before) else "early"

    @property
    def occupancy(self) -> float:
        """Resident warps, as registers and shared memory allow, over those that the multiprocessor could hold."""
        per_warp = -(-self.registers // 8) * 8 * 32
        by_registers = 65536 // max(1, per_warp) // self.case.num_warps
        by_shared = SHARED[self.target] // (self.shared + 1024)
        warps = min(by_registers, by_shared, 32, WARPS[self.target] // self.case.num_warps) * self.case.num_warps
        return warps / WARPS[self.target]

    def row(self) -> str:
        """A line of the gate's table."""
        return (
            f"{self.case.name:<36} sm_{self.target}  {self.registers:>4} registers  {self.shared:>7} B shared  "
            f"{self.occupancy:>4.0%} occupancy  loads {_widths(self.loads):<12} stores {_widths(self.stores):<12}"
        )


def _widths(widths: tuple[int, ...]) -> str:
    return "/".join(str(width // 8) for width in sorted(set(widths), reverse=True)) + " B" if widths else "none"


def pdl_code(trigger: str | None) -> int:
    """The constexpr PDL of a kernel that lets the next one start at `trigger`; None without a dependent launch."""
    return PDL_CODES[trigger] if trigger else 0


def kernel_modules() -> list[Any]:
    """Every module of kernels/ but the reference."""
    names = [info.name for info in pkgutil.iter_modules(kernels.__path__)]
    return [importlib.import_module(f"{kernels.__name__}.{name}") for name in names if name != "reference"]


def kernels_of(module: Any) -> dict[str, Any]:
    """The kernels that a module defines, by name."""
    own = {name: value for name, value in vars(module).items() if isinstance(value, JITFunction)}
    return {
        name: value
        for name, value in own.items()
        if name.endswith("_kernel") and value.fn.__module__ == module.__name__
    }


def compile_case(case: GateCase, target: int) -> Compiled:
    """Compiles a case for compute capability `target` (90 is sm_90) and reads its machine code."""
    arguments = list(case.kernel.arg_names)
    signature = {name: case.signature.get(name, "constexpr") for name in arguments}
    places = {(arguments.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
    constants = {(arguments.index(name),): value for name, value in case.constexprs.items()}
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constants, attrs=places)
    settings = {"num_warps": case.num_warps, "num_stages": case.num_stages, **case.options}
    if case.pdl:
        settings["launch_pdl"] = True
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=settings)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    return Compiled(
        case,
        target,
        registers=int(_one(r"REG:(\d+)", usage)),
        stack=int(_one(r"STACK:(\d+)", usage)),
        shared=int(compiled.metadata.shared),
        loads=_global_widths("LDG", sass) + _global_widths("LDGSTS", sass),
        stores=_global_widths("STG", sass),
        sass=sass,
    )


def _global_widths(operation: str, sass: str) -> tuple[int, ...]:
    """Bits of each global load or store: .128 and .64 are spelled out, .U8 and .U16 too, 32 is the silent default."""
    widths = []
    for modifiers in re.findall(rf"\b{operation}((?:\.[A-Z0-9]+)*)", sass):
        known = re.search(r"\.(?:[US])?(8|16|64|128)\b", modifiers)
        widths.append(int(known.group(1)) if known else 32)
    return tuple(widths)


def _tool(name: str, *arguments: str) -> str:
    import triton.backends.nvidia as nvidia

    path = Path(nvidia.__file__).parent / "bin" / name
    return subprocess.run([str(path), *arguments], capture_output=True, text=True, check=True).stdout


def _one(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"no {pattern} in the compiler's report: {text[:200]}")
    return found.group(1)
