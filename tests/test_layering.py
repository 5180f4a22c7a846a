"""The rules that keep every module in its room, checked on the import statements of the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from assets import REPO

PACKAGE = REPO / "baize_engine"
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "kernels" not in p.relative_to(PACKAGE).parts)
KERNELS = sorted((REPO / "kernels").glob("*.py"))
ALL = SOURCES + KERNELS


def module_name(path: Path) -> str:
    if path in KERNELS:
        return f"baize_engine.kernels.{path.stem}"
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Modules that a file imports at run time, with `from a import b` giving both a and a.b."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(path).split(".")[: -node.level]
                base = ".".join([*package, base]).rstrip(".")
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        if top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        pending.extend(ast.iter_child_nodes(node))
    return found


def touches(found: set[str], package: str) -> list[str]:
    return sorted(name for name in found if name == package or name.startswith(package + "."))


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.stem)
def test_kernels_know_nothing_of_the_package(path: Path) -> None:
    outside = [name for name in touches(imports(path), "baize_engine") if not name.startswith("baize_engine.kernels")]
    assert outside == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_triton_stays_in_kernels(path: Path) -> None:
    assert touches(imports(path), "triton") == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_recovery_and_decoder_never_meet(path: Path) -> None:
    name = module_name(path)
    if name.startswith("baize_engine.recovery"):
        forbidden = ["baize_engine.model", "baize_engine.generation", "baize_engine.engine"]
    elif name.startswith(("baize_engine.model", "baize_engine.generation")):
        forbidden = ["baize_engine.recovery"]
    elif name.startswith("baize_engine.checkpoint"):
        forbidden = [
            "baize_engine.recovery",
            "baize_engine.model",
            "baize_engine.generation",
            "baize_engine.backend",
        ]
    else:
        return
    assert [hit for package in forbidden for hit in touches(imports(path), package)] == []


def test_one_module_feeds_recovered_tensors_to_weights() -> None:
    """The command line, which names both for its commands, apart."""
    both = [
        module_name(path)
        for path in SOURCES
        if touches(imports(path), "baize_engine.recovery") and touches(imports(path), "baize_engine.model")
    ]
    assert both == ["baize_engine.cli.recover", "baize_engine.from_diff"]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_only_backend_picks_implementations(path: Path) -> None:
    """Kernels are reached through the table. The adders, the norm check and `native` call the C++ they are named after."""
    name = module_name(path)
    if name.startswith(("baize_engine.backend", "baize_engine.recovery")):
        return
    found = touches(imports(path), "baize_engine.kernels") + touches(imports(path), "baize_engine._C")
    assert found == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_only_the_cli_parses_and_prints(path: Path) -> None:
    if module_name(path).startswith(("baize_engine.cli", "baize_engine.__main__")):
        return
    assert touches(imports(path), "argparse") == []
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not any(isinstance(call.func, ast.Name) and call.func.id in ("print", "input") for call in calls)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_token_ids_only_below_the_engine(path: Path) -> None:
    name = module_name(path)
    if not name.startswith(
        ("baize_engine.model", "baize_engine.generation", "baize_engine.recovery", "baize_engine.checkpoint")
    ):
        return
    assert touches(imports(path), "baize_engine.text.tokenizer") == []
    assert touches(imports(path), "baize_engine.text.chat") == []


@pytest.mark.parametrize("path", ALL, ids=module_name)
def test_no_exception_is_swallowed_whole(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path.name}:{node.lineno}: bare except"
            broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            reraises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            assert not broad or reraises, f"{path.name}:{node.lineno}: swallows every exception"


def test_torch_load_is_never_called() -> None:
    for path in ALL:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "load" and isinstance(node.value, ast.Name):
                assert node.value.id not in ("torch", "pickle"), f"{path}:{node.lineno}"


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_is_cheap() -> None:
    heavy = "[m for m in ('torch', 'triton', 'numpy', 'sentencepiece') if m in sys.modules]"
    assert run_python(f"import sys, baize_engine, baize_engine.cli.main; print({heavy})").strip() == "[]"


def test_the_cpu_recover_path_does_not_load_torch() -> None:
    code = "import sys; from baize_engine import recover, make_diff, verify; from baize_engine.backend import choose; "
    code += "choose.diff_adder('cpu')().buffer(10); print('torch' in sys.modules, 'triton' in sys.modules)"
    assert run_python(code).strip() == "False False"
