"""Imports torch faster, in the command's own process: without parts that decoding never uses, and without garbage collection.

`import torch` takes 0.72 s on a Zen 5 server, and 0.44 s this way. A placeholder stands for each module that is left out, and
loads them all once it is asked for an attribute, or another module of torch is imported. The largest, 0.16 s, is
torch._meta_registrations: kernels for tensors without data, which tracing and compiling use. A full collection over the
objects that torch makes takes 0.08 s and frees nothing. A process that is not the command's own gets torch as it is: this is
no part of the library.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

TORCH = "torch"
META = "torch._meta_registrations"  # `import torch` ends with it, and takes no name from it
# Modules from which torch itself takes no names. torch depends on the order in which its modules load, so these are deferred
# only in versions that the tests have seen, given by the beginning of the version.
UNASKED = {
    "2.13.": (
        "torch.ao", "torch.distributed.config", "torch.distributions", "torch.masked", "torch.nested", "torch.nn.intrinsic",
        "torch.nn.qat", "torch.nn.quantizable", "torch.nn.quantized", "torch.optim", "torch.profiler", "torch.quantization",
        "torch.testing", "torch.utils.data",
    ),
}  # fmt: skip


def make_lean(device: str) -> None:
    """Makes the first `import torch` of this process, if it is still to come, a lean one. device: as the command was told.

    A torch that could use a GPU is whole unless `device` is "cpu".
    """
    if TORCH not in sys.modules:
        sys.meta_path.insert(0, LeanFinder(device))


def deferred(torch_version: str) -> frozenset[str]:
    """The modules that are left out of the import of a torch of this version."""
    tried = (names for begin, names in UNASKED.items() if torch_version.startswith(begin))
    return frozenset({META}).union(*tried)


class LeanFinder(MetaPathFinder):
    """Finds torch, the modules to be deferred while that is imported, and whoever asks for more of torch afterwards.

    It leaves sys.meta_path once the deferred modules are there too; then everything is as after a plain import.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._deferred: frozenset[str] = frozenset()  # while torch is being imported
        self._left: list[Deferred] = []  # in the order in which torch asked for them
        self._imported = False
        self._lock = threading.RLock()  # a thread that asks while another completes waits for it

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self._imported and fullname.startswith(f"{TORCH}."):
            self.complete()
        if fullname != TORCH and fullname not in self._deferred:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:  # it comes in another way, and as it is
            return None
        spec.loader = _Lean(spec.loader, self) if fullname == TORCH else _Deferring(spec.loader, self)
        return spec

    def load(self, torch: ModuleType, loader: Loader) -> None:
        """Runs torch's own loader."""
        from importlib.metadata import (
            PackageNotFoundError,
            version,
        )  # which torch imports too, and other commands do not

        try:
            self._deferred = deferred(version(TORCH))
        except PackageNotFoundError:  # built in its own folder, of whatever version
            self._deferred = deferred("")
        collecting = gc.isenabled()
        gc.disable()
        try:
            loader.exec_module(torch)
            self._imported = True
        finally:
            self._deferred = frozenset()
            gc.freeze()
            if collecting:
                gc.enable()
            if not self._imported:
                sys.meta_path.remove(self)
        if self._device != "cpu" and any(getattr(torch.version, gpu, None) for gpu in ("cuda", "hip", "xpu")):
            self.complete()

    def defer(self, name: str, loader: Loader) -> Deferred:
        """A module to stand for `name`, which `loader` loads."""
        self._left.append(Deferred(name, loader, self))
        return self._left[-1]

    def complete(self) -> None:
        """Loads all that was deferred: the modules may rely on what others of them register."""
        with self._lock:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            while self._left:
                self._left.pop(0).load()

    def want(self, module: Deferred) -> None:
        """Loads `module`, and with it, once torch is there, all others."""
        if self._imported:
            self.complete()
        else:
            self._left.remove(module)
            module.load()


class _Lean(Loader):
    """Torch's loader within a LeanFinder."""

    def __init__(self, loader: Loader, finder: LeanFinder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        _give_back(module, self._loader)
        self._finder.load(module, self._loader)


class _Deferring(Loader):
    """Puts a `Deferred` in the place of a module."""

    def __init__(self, loader: Loader, finder: LeanFinder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._finder.defer(spec.name, self._loader)

    def exec_module(self, module: ModuleType) -> None:
        _give_back(module, self._loader)


class Deferred(ModuleType):
    """A module that runs when it is first asked for an attribute of its own."""

    def __init__(self, name: str, loader: Loader, finder: LeanFinder) -> None:
        super().__init__(name)
        self.__loader, self.__finder = loader, finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # what the import system asks of any module
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__finder.want(self)
        return getattr(self, name)

    def load(self) -> None:
        """Makes it an ordinary module, as a plain import would have."""
        loader = self.__loader
        del self.__loader, self.__finder
        self.__class__ = ModuleType  # type: ignore[assignment]  # first: it may be asked for attributes while it runs
        loader.exec_module(self)


def _give_back(module: ModuleType, loader: Loader) -> None:
    """Leaves a module's own loader as what loaded it."""
    module.__loader__ = loader
    if module.__spec__ is not None:
        module.__spec__.loader = loader
