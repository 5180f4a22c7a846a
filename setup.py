"""Builds baize_engine._C from csrc/ and maps the top-level kernels/ folder into the package.

Every source is compiled for the plain CPU of its architecture; wider instruction sets are enabled function by
function with target attributes and chosen at run time, so one build runs everywhere with equal bits.
"""

import os
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path

from setuptools import Distribution, __version__, setup
from setuptools.errors import CompileError, LinkError

try:
    from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
except ImportError:
    raise SystemExit(f"building baize_engine._C needs pybind11, which {sys.executable} does not have") from None

READS_PYPROJECT = 77  # the first setuptools that takes the licence as pyproject.toml writes it


class ExtensionAlone(Distribution):
    """The extension without pyproject.toml, which older setuptools refuse: what `build_ext --inplace` needs."""

    def parse_config_files(self, *_: object, **__: object) -> None:
        pass


def distribution() -> type[Distribution]:
    if int(__version__.partition(".")[0]) >= READS_PYPROJECT:
        return Distribution
    if "build_ext" not in sys.argv:
        raise SystemExit(
            f"setuptools {__version__} cannot read pyproject.toml, wanted {READS_PYPROJECT} or newer; "
            "`setup.py build_ext --inplace` works with it"
        )
    return ExtensionAlone


class Build(build_ext):
    """Says what is missing where the compiler's own message does not."""

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except (CompileError, LinkError) as error:
            raise SystemExit(
                f"building baize_engine._C failed: {error}\nIt needs a C++17 compiler and Python's headers "
                "(on Debian: build-essential python3-dev). CXX and CC choose the compiler."
            ) from None


def openmp_flag() -> list[str]:
    """`-fopenmp` where the compiler has it; without it the kernels run on the calling thread."""
    compiler = os.environ.get("CXX", "c++")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        command = [compiler, "-fopenmp", str(source), "-o", str(Path(folder, "probe"))]
        try:
            found = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            found = False
    if not found:
        print(f"{compiler} cannot build with -fopenmp: the C++ kernels will use one thread", file=sys.stderr)
    return ["-fopenmp"] if found else []


flags = openmp_flag()
extension = Pybind11Extension(
    "baize_engine._C",
    sorted(glob("csrc/**/*.cpp", recursive=True)),
    depends=sorted(glob("csrc/**/*.h", recursive=True)),
    include_dirs=["."],  # headers of one name lie in csrc/ and csrc/generic/, so that includes say which
    cxx_std=17,
    # -ffp-contract=off: an a*b+c must not become a fused multiply-add on one machine and not on another.
    extra_compile_args=["-O3", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", *flags],
    extra_link_args=flags,
)

ParallelCompile().install()  # as many sources at once as there are processors
setup(ext_modules=[extension], cmdclass={"build_ext": Build}, distclass=distribution())
