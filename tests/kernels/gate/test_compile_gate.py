"""Every Triton kernel, compiled for GPUs that are not here: no spills, shared memory within limits, wide accesses.

General: a kernel that anyone adds under kernels/ is found here, and fails until gate_cases.py has a case of it. CI compiles
one shape of each kernel (`ci=True`); `make gate` compiles all of them and prints the table.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

pytest.importorskip("triton")

import compile_gate
import gate_cases
import triton

CASES = gate_cases.cases()


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        if request.config.getoption("capture") == "no":
            print(f"\nTriton {triton.__version__}\n" + "\n".join(rows))


def parameters() -> list[object]:
    return [
        pytest.param(case, target, id=f"{case.name}-sm{target}", marks=[] if case.ci else pytest.mark.slow)
        for case in CASES
        for target in case.targets
    ]


@pytest.mark.parametrize(("case", "target"), parameters())
def test_machine_code(case: compile_gate.GateCase, target: int, table: list[str]) -> None:
    compiled = compile_gate.compile_case(case, target)
    table.append(compiled.row())
    assert compiled.problems() == []


@pytest.mark.parametrize("module", compile_gate.kernel_modules(), ids=lambda module: module.__name__)
def test_every_kernel_has_a_case_in_ci(module: object) -> None:
    covered = {case.kernel for case in CASES if case.ci}
    assert [name for name, kernel in compile_gate.kernels_of(module).items() if kernel not in covered] == []


def test_kernels_are_found() -> None:
    assert "_diff_add_kernel" in compile_gate.kernels_of(importlib.import_module("baize_engine.kernels.diff_add"))


# The gate must be able to fail.


def toy(**changes: object) -> compile_gate.GateCase:
    import gate_toys

    case = compile_gate.GateCase(
        name="toy",
        kernel=gate_toys.copy_kernel,
        signature={"src": "*fp32", "dst": "*fp32", "count": "i32"},
        constexprs={"BLOCK": 1024, "HUNGRY": False},
        aligned=("src", "dst", "count"),
    )
    return replace(case, **changes)


def test_a_good_kernel_passes() -> None:
    assert compile_gate.compile_case(toy(), 90).problems() == []


@pytest.mark.parametrize("target", compile_gate.TARGETS)
def test_narrow_accesses_are_noticed(target: int) -> None:
    problems = compile_gate.compile_case(toy(aligned=()), target).problems()
    assert any("no 16-byte load" in problem for problem in problems)
    assert any("no 16-byte store" in problem for problem in problems)


def test_spills_are_noticed() -> None:
    hungry = toy(constexprs={"BLOCK": 16384, "HUNGRY": True}, num_warps=1, wide_loads=False, wide_stores=False)
    problems = compile_gate.compile_case(hungry, 80).problems()
    assert any("spills to local memory" in problem for problem in problems)


def test_a_missing_dot_is_noticed() -> None:
    assert compile_gate.compile_case(toy(dot=True), 90).problems() == ["toy for sm_90: no tensor-core instruction"]


def test_a_dependent_launch_is_compiled_where_it_exists() -> None:
    case = next(case for case in CASES if case.pdl)
    assert case.targets == (90,)
    assert "ACQBULK" in compile_gate.compile_case(case, 90).sass
    assert "ACQBULK" not in compile_gate.compile_case(next(case for case in CASES if not case.pdl), 90).sass


@pytest.mark.parametrize(
    ("early", "pdl", "problems"),
    [
        (False, 2, []),
        (False, 1, ["lets the next kernel start first, wanted early"]),
        (False, 3, ["lets the next kernel start at its end, wanted early"]),
        (True, 2, ["LDG before it waits for the kernel before it"]),
        (False, 0, [
            "does not wait for the kernel before it", "lets the next kernel start at its end, wanted early"
        ]),
    ],
)  # fmt: skip
def test_an_access_before_the_wait_is_noticed(early: bool, pdl: int, problems: list[str]) -> None:
    import gate_toys

    case = toy(
        kernel=gate_toys.waiting_kernel,
        signature={"src": "*fp32", "dst": "*fp32"},
        constexprs={"BLOCK": 1024, "EARLY": early, "PDL": pdl},
        aligned=("src", "dst"),
        pdl="early",
    )
    found = compile_gate.compile_case(case, 90).problems()
    assert found == [f"toy for sm_90: {problem}" for problem in problems]


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "wanted"),
    [(32, 0, 4, 1.0), (255, 0, 4, 8 / 64), (64, 49152, 2, 8 / 64), (40, 1024, 8, 48 / 64)],
)
def test_occupancy(registers: int, shared: int, warps: int, wanted: float) -> None:
    compiled = replace(
        compile_gate.compile_case(toy(), 90), registers=registers, shared=shared, case=toy(num_warps=warps)
    )
    assert compiled.occupancy == wanted


def test_wgmma_is_noticed_where_it_must_not_be() -> None:
    prefill = next(case for case in CASES if case.name.startswith("attention prefill fp16"))
    compiled = compile_gate.compile_case(prefill, 90)
    assert compiled.problems() == []
    assert "wgmma where" in replace(compiled, case=replace(prefill, warp_level=True)).problems()[0]


def test_too_much_shared_memory_is_noticed() -> None:
    compiled = replace(compile_gate.compile_case(toy(), 89), shared=101377)
    assert compiled.problems() == ["toy for sm_89: 101377 bytes of shared memory, sm_89 has 101376"]
