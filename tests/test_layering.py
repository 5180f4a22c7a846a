"""Which module may know which: the order of layers, and some rules of single folders, read from the sources.

The order, lowest first: errors, printable, plain, fields, progress, interrupts and the C++ extension; kernels; checkpoint;
text; backend and distributed; recovery and model, which do not know each other; generation; the engine and its options,
requests and loading; batch; cli.
Imports within functions and those for type checkers count as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from assets import REPO

# Lowest first: folders and files of baize_engine/. A module imports from its own layer and those before it, no other.
LAYERS = (
    ("_C", "errors", "fields", "interrupts", "plain", "printable", "progress"),
    ("kernels",),
    ("checkpoint",),
    ("text",),
    ("backend", "distributed"),
    ("model", "recovery"),
    ("generation",),
    (
        "completion",
        "engine",
        "from_diff",
        "loaded_model",
        "loading",
        "options",
        "outputs",
        "requests",
        "speculate",
        "team",
    ),
    ("batch", "evaluation"),
    ("__main__", "cli"),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
STRANGERS = {"recovery": ("model", "generation"), "model": ("recovery",), "generation": ("recovery",)}
ONE_IMPLEMENTATION = {"CHUNK", "add_rows", "widen"}  # of the C++ extension: nothing to choose from

PACKAGE = REPO / "baize_engine"
KERNELS = sorted((REPO / "kernels").glob("*.py"))
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "kernels" not in path.relative_to(PACKAGE).parts)
ALL = SOURCES + KERNELS
BELOW_THE_ENTRANCE = [path for path in ALL if path != PACKAGE / "__init__.py"]  # which names what each layer offers


def module_name(path: Path) -> str:
    if path in KERNELS:
        return f"baize_engine.kernels.{path.stem}"
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(path: Path) -> str:
    """The folder or the file of baize_engine/ that a source is of."""
    return module_name(path).split(".")[1]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> dict[str, int]:
    """Modules that a file imports, each with a line; `from a import b` gives both a and a.b."""
    found: dict[str, int] = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name: node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(module_name(path).split(".")[: -node.level]) if node.level else ""
            module = f"{package}.{node.module or ''}".strip(".")
            found |= {name: node.lineno for name in [module, *(f"{module}.{alias.name}" for alias in node.names)]}
    return found


def imports_of(path: Path, *packages: str) -> list[str]:
    """Where a file imports one of these: ["line: module", ...]."""
    return [
        f"{line}: {name}"
        for name, line in imports(path).items()
        if any(name == package or name.startswith(f"{package}.") for package in packages)
    ]


def rooms_imported(path: Path) -> dict[str, int]:
    """Folders and files of the package that a file imports, but its own, each with a line."""
    found = {}
    for name, line in imports(path).items():
        package, _, rest = name.partition(".")
        if package == "baize_engine" and rest not in ("", "__version__"):
            found[rest.partition(".")[0]] = line
    return {name: line for name, line in found.items() if name != room(path)}


@pytest.mark.parametrize("path", BELOW_THE_ENTRANCE, ids=module_name)
def test_no_import_runs_against_the_order_of_layers(path: Path) -> None:
    own = RANKS[room(path)]
    assert [f"{path.name}:{line}: {name}" for name, line in rooms_imported(path).items() if RANKS[name] > own] == []


def test_folders_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in BELOW_THE_ENTRANCE:
        graph.setdefault(room(path), set()).update(rooms_imported(path))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {error.args[1]}")


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_kernels_know_nothing_of_the_package(path: Path) -> None:
    assert rooms_imported(path) == {}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_triton_stays_in_kernels(path: Path) -> None:
    assert imports_of(path, "triton") == []


def test_recovery_and_decoder_never_meet() -> None:
    for path in BELOW_THE_ENTRANCE:
        forbidden = [f"baize_engine.{name}" for name in STRANGERS.get(room(path), ())]
        assert imports_of(path, *forbidden) == [], path


def test_one_module_feeds_recovered_tensors_to_weights() -> None:
    """The command line apart, which names both for its commands."""
    both = [
        module_name(path)
        for path in BELOW_THE_ENTRANCE
        if room(path) != "cli" and imports_of(path, "baize_engine.recovery") and imports_of(path, "baize_engine.model")
    ]
    assert both == ["baize_engine.from_diff"]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_only_backend_picks_implementations(path: Path) -> None:
    """Others reach kernels through it, and know the format of quantised weights, which is one everywhere.

    What the C++ extension has of one kind only, recovery calls itself.
    """
    if path == PACKAGE / "__init__.py" or room(path) == "backend":
        return
    format_of_weights = imports_of(path, "baize_engine.kernels.quantized")
    assert [each for each in imports_of(path, "baize_engine.kernels") if each not in format_of_weights] == []
    if room(path) == "recovery":
        assert used_of_extension(tree(path)) <= ONE_IMPLEMENTATION
    else:
        assert imports_of(path, "baize_engine._C") == []


def used_of_extension(module: ast.Module) -> set[str]:
    """The names of _C that a source uses; "*" stands for a use that hides them: by another name, or without an attribute."""
    nodes = list(ast.walk(module))
    owners = [node.value for node in nodes if isinstance(node, ast.Attribute)]
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute) and is_extension(node.value)}
    found |= {"*" for node in nodes if is_extension(node) and node not in owners}
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {"*" for alias in node.names if alias.name == "baize_engine._C"}
        elif isinstance(node, ast.ImportFrom):
            from_extension = (node.module or "").rpartition(".")[2] == "_C"
            found |= {alias.name for alias in node.names if from_extension}
            found |= {"*" for alias in node.names if alias.name == "_C" and alias.asname}
    return found


def is_extension(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "_C"


@pytest.mark.parametrize(
    ("source", "used"),
    [
        ("from baize_engine import _C\n_C.widen(1)", {"widen"}),
        ("from baize_engine._C import diff_add as add", {"diff_add"}),
        ("from .._C import diff_add", {"diff_add"}),
        ("from baize_engine import _C as c\nc.diff_add()", {"*"}),
        ("import baize_engine._C\nbaize_engine._C.diff_add()", {"*"}),
        ("from baize_engine import _C\ngetattr(_C, 'diff_add')()", {"*"}),
        ("from baize_engine import _C\nc = _C\nc.diff_add()", {"*"}),
    ],
)
def test_no_spelling_hides_a_use_of_the_extension(source: str, used: set[str]) -> None:
    assert used_of_extension(ast.parse(source)) == used


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_only_the_cli_parses_and_prints(path: Path) -> None:
    if path == PACKAGE / "__main__.py" or path.is_relative_to(PACKAGE / "cli"):
        return
    assert imports_of(path, "argparse") == []
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    printing = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("print", "input")]
    assert [f"{path.name}:{call.lineno}" for call in printing] == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_only_the_engine_and_what_is_above_it_meet_text(path: Path) -> None:
    """What computes knows token ids only."""
    if path == PACKAGE / "__init__.py" or RANKS[room(path)] >= RANKS["engine"]:
        return
    allowed = [] if room(path) == "text" else ["baize_engine.text"]
    assert imports_of(path, *allowed) == []


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("text/*.py")), ids=module_name)
def test_text_knows_files_and_nothing_else(path: Path) -> None:
    assert set(rooms_imported(path)) <= {"checkpoint", *LAYERS[0]}


def is_set_exception(node: ast.AST) -> bool:
    """A future's: the error is raised where its result is awaited."""
    return isinstance(node, ast.Attribute) and node.attr == "set_exception"


@pytest.mark.parametrize("path", ALL, ids=module_name)
def test_no_exception_is_swallowed_whole(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path.name}:{node.lineno}: bare except"
            broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            passed_on = any(isinstance(inner, ast.Raise) or is_set_exception(inner) for inner in ast.walk(node))
            assert not broad or passed_on, f"{path.name}:{node.lineno}: swallows every exception"


def test_torch_load_is_never_called() -> None:
    for path in ALL:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and node.attr == "load" and isinstance(node.value, ast.Name):
                assert node.value.id not in ("torch", "pickle"), f"{path}:{node.lineno}"


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_is_cheap() -> None:
    heavy = "[m for m in ('torch', 'triton', 'numpy', 'sentencepiece') if m in sys.modules]"
    assert run_python(f"import sys, baize_engine, baize_engine.cli; print({heavy})").strip() == "[]"


def test_the_cpu_recover_path_does_not_load_torch() -> None:
    code = "import sys; from baize_engine import recover, make_diff, verify; from baize_engine.backend import choose; "
    code += "choose.diff_adder('cpu')().buffer(10); print('torch' in sys.modules, 'triton' in sys.modules)"
    assert run_python(code).strip() == "False False"
