"""What `baize generate` imports on a CPU, and that a torch imported that way is the same torch to whoever asks for more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from baize_engine.cli import lean_torch

# to decode on a CPU nobody needs them; most are what compiling and tracing need
HEAVY = (
    "triton", "transformers", "huggingface_hub", "sympy", "onnx", "torch._dynamo", "torch._inductor", "torch.onnx",
    "torch._prims", "torch._refs", "torch._decomp.decompositions", "baize_engine.recovery.recover",
    "baize_engine.backend.cuda_adder", "baize_engine.kernels.product",
)  # fmt: skip
TRIED = any(torch.__version__.startswith(begin) for begin in lean_torch.UNASKED)


def python(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """A process of its own: in this one torch is imported. paths: where it finds modules first."""
    found = os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": found}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)


def shown(code: str, *paths: Path) -> object:
    """What the code prints, JSON on its last line."""
    done = python(code, *paths)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_little_is_imported_to_answer_on_a_cpu(folder: Path, command: str) -> None:
    prompt = ["--prompt", "the cat"] if command == "generate" else []
    arguments = [
        "baize",
        command,
        str(folder),
        "--device",
        "cpu",
        "--max_new_tokens",
        "2",
        "--temperature",
        "0",
        *prompt,
    ]
    code = f"""
import gc, io, json, sys
sys.argv = {arguments!r}
sys.stdin = io.TextIOWrapper(io.BytesIO(b"the cat\\n"))
from baize_engine.cli import main
code = main()
from baize_engine.cli.lean_torch import Deferred
waiting = sorted(name for name, module in sys.modules.items() if type(module) is Deferred)
loaded = sys.modules.keys() - waiting
print()
print(json.dumps([code, [name for name in {HEAVY!r} if name in loaded], waiting]))
"""
    assert shown(code) == [0, [], sorted(lean_torch.deferred(torch.__version__))]


def test_a_wrong_folder_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    """And arguments that a program gives leave that program's own torch alone."""
    code = f"""
import json, sys
from baize_engine.cli import main
before = list(sys.meta_path)
code = main(["generate", {str(tmp_path / "nowhere")!r}, "--prompt", "a"])
print(json.dumps([code, "torch" in sys.modules, sys.meta_path == before]))
"""
    done = python(code)
    assert json.loads(done.stdout) == [1, False, True]
    assert "nowhere" in done.stderr


def test_the_library_imports_torch_as_it_is() -> None:
    code = """
import json, sys
before = list(sys.meta_path)
from baize_engine import Engine
plain = [type(sys.modules[name]).__name__ for name in ("torch._meta_registrations", "torch.optim")]
print(json.dumps([plain, sys.meta_path == before, "baize_engine.cli.lean_torch" in sys.modules]))
"""
    assert shown(code) == [["module", "module"], True, False]


# __annotations__: since Python 3.14 a module has it once somebody has asked for it
CONTENTS = """
import json
modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torch"}
names = {name: sorted(vars(module).keys() - {"__annotations__"}) for name, module in modules.items()}
loaders = {name: type(sys.modules[name].__spec__.loader).__name__ for name in names if sys.modules[name].__spec__}
finders = [finder for finder in sys.meta_path if "Lean" in type(finder).__name__]
print(json.dumps([names, loaders, len(finders)]))
"""


@pytest.mark.parametrize(
    "more",
    [
        "import torch; torch.optim.SGD",
        "import torch; torch._meta_registrations.device_hint",
        "import torch",  # and another of its modules
    ],
)
def test_whoever_asks_for_more_finds_all_of_torch(more: str) -> None:
    name = "torch.utils.mkldnn"  # which `import torch` leaves out
    plain = shown(f"import sys, torch, {name}\n{CONTENTS}")
    lean = f"import sys\nfrom baize_engine.cli import lean_torch\nlean_torch.make_lean('cpu')\n{more}\nimport {name}\n"
    assert shown(lean + CONTENTS) == plain


@pytest.mark.skipif(not TRIED, reason="only torch's meta kernels are deferred in this version")
def test_what_was_deferred_works() -> None:
    code = """
import json
from baize_engine.cli import lean_torch
lean_torch.make_lean("cpu")
import torch
layer = torch.nn.Linear(3, 2)
torch.optim.SGD(layer.parameters(), lr=0.1).step()
normal = torch.distributions.Normal(0.0, 1.0)
data = list(torch.utils.data.DataLoader(range(4), batch_size=2))
with torch._subclasses.FakeTensorMode():
    fake = torch.ones(2, 3) @ torch.ones(3, 4)
traced = torch.compile(lambda x: x * 2, backend="eager")(torch.ones(2))
print(json.dumps([normal.mean.item(), len(data), list(fake.shape), traced.tolist()]))
"""
    assert shown(code) == [0.0, 2, [2, 4], [2.0, 2.0]]


@pytest.fixture
def other_torch(tmp_path: Path) -> Path:
    """The folder of a torch of another version, which says what it loads."""
    package = tmp_path / "torch"
    (tmp_path / "torch-9.9.dist-info").mkdir()
    (tmp_path / "torch-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
    package.mkdir()
    (package / "__init__.py").write_text(
        "import gc\nfrom torch import version\ncollects = gc.isenabled()\nfrom torch import _meta_registrations, optim\n"
    )
    (package / "version.py").write_text("cuda = None\n")
    for name in ("_meta_registrations", "optim", "more"):
        (package / f"{name}.py").write_text(f"print({name!r})\nvalue = 7\n")
    return tmp_path


def lean(device: str, code: str) -> str:
    return f"import gc, sys\nfrom baize_engine.cli.lean_torch import make_lean\nmake_lean({device!r})\nimport torch\n{code}"


FINDERS = "print([type(finder).__name__ for finder in sys.meta_path].count('LeanFinder'))"


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        (f"{FINDERS}; print(torch.collects, gc.isenabled(), gc.get_freeze_count() > 0)", "optim 1 False True True"),
        (f"print(torch._meta_registrations.value); {FINDERS}", "optim _meta_registrations 7 0"),
        (f"import torch.more; {FINDERS}", "optim _meta_registrations more 0"),
        ("print(torch._meta_registrations.__name__, torch._meta_registrations.__file__[-4:])",
         "optim torch._meta_registrations s.py"),
    ],
    ids=["deferred", "asked", "another", "named"],
)  # fmt: skip
def test_of_a_version_that_was_not_tried_only_the_meta_kernels_wait(other_torch: Path, code: str, printed: str) -> None:
    assert python(lean("cpu", code), other_torch).stdout.split() == printed.split()


@pytest.mark.parametrize(
    ("device", "printed"),
    [("cpu", "optim"), ("auto", "optim _meta_registrations"), ("cuda:1", "optim _meta_registrations")],
)
def test_a_torch_that_may_use_a_gpu_is_whole(other_torch: Path, device: str, printed: str) -> None:
    (other_torch / "torch" / "version.py").write_text("cuda = '12.8'\n")
    assert python(lean(device, ""), other_torch).stdout.split() == printed.split()


def test_a_module_that_torch_itself_asks_is_loaded_at_once(other_torch: Path) -> None:
    with (other_torch / "torch" / "__init__.py").open("a") as file:
        file.write("from torch._meta_registrations import value\nprint('end')\n")
    assert python(lean("cpu", f"print(torch.value); {FINDERS}"), other_torch).stdout.split() == [
        "optim", "_meta_registrations", "end", "7", "1",
    ]  # fmt: skip


def test_a_torch_that_fails_to_import_says_so_each_time(other_torch: Path) -> None:
    (other_torch / "torch" / "__init__.py").write_text("raise ImportError('libcudart is missing')\n")
    code = f"""
import gc, sys
from baize_engine.cli.lean_torch import make_lean
make_lean("cpu")
for _ in range(2):
    try:
        import torch
    except ImportError as error:
        print(error)
    {FINDERS}
print(gc.isenabled())
"""
    assert python(code, other_torch).stdout.splitlines() == [
        "libcudart is missing",
        "0",
        "libcudart is missing",
        "0",
        "True",
    ]


def test_without_torch_the_import_fails_as_it_would() -> None:
    code = """
import sys
from baize_engine.cli.lean_torch import LeanFinder
finder = LeanFinder("cpu")
print(finder.find_spec("torch", []), finder.find_spec("torch.optim", []), finder.find_spec("numpy", None))
"""
    assert python(code).stdout.split() == ["None", "None", "None"]
