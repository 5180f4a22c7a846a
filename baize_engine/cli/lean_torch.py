"""Imports torch sooner, in the command's own process: without its meta kernels, and without collecting garbage meanwhile.

`import torch` ends with torch._meta_registrations, 0.16 of its 0.7 s: kernels for tensors without data, which only tracing and
compiling use. Nothing takes a name from that module, it only registers. In its place stands a module that loads the real one
when it is asked for an attribute. And each full collection over the objects that torch makes takes 0.08 s and frees nothing.
A process that is not only ours gets torch as it is: whoever imports baize_engine as a library never runs this.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

TORCH, DEFERRED = "torch", "torch._meta_registrations"


def make_lean(device: str) -> None:
    """Makes the first `import torch` of this process, if it is still to come, a lean one. device: as the command was told.

    A torch that could use a GPU is whole unless `device` is "cpu".
    """
    if TORCH not in sys.modules:
        sys.meta_path.insert(0, LeanFinder(device))


class LeanFinder(MetaPathFinder):
    """Finds torch and, while that is imported, the module to be deferred. Leaves sys.meta_path once torch is there."""

    def __init__(self, device: str) -> None:
        self._device, self.importing = device, False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != (DEFERRED if self.importing else TORCH):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:  # it comes by other ways, as it is
            return None
        spec.loader = _Deferring(spec.loader) if fullname == DEFERRED else _Lean(spec.loader, self)
        return spec

    def whole(self, torch: ModuleType) -> bool:
        """Whether `torch`, just imported, is to have its meta kernels at once."""
        return self._device != "cpu" and any(getattr(torch.version, gpu, None) for gpu in ("cuda", "hip", "xpu"))


class _Lean(Loader):
    """Runs torch's own loader without collections; afterwards everything is as after a plain import."""

    def __init__(self, loader: Loader, finder: LeanFinder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        _give_back(module, self._loader)
        collecting, self._finder.importing = gc.isenabled(), True
        gc.disable()
        try:
            self._loader.exec_module(module)
        finally:
            sys.meta_path.remove(self._finder)
            gc.freeze()
            if collecting:
                gc.enable()
        deferred = sys.modules.get(DEFERRED)
        if isinstance(deferred, _Deferred) and self._finder.whole(module):
            deferred.load()


class _Deferring(Loader):
    """Puts a `_Deferred` in the place of a module."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        _give_back(module, self._loader)


class _Deferred(ModuleType):
    """A module that runs when it is first asked for an attribute that every module does not have."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.load()
        return getattr(self, name)

    def load(self) -> None:
        self.__class__ = ModuleType  # first: the module may ask for its own attributes while it runs
        assert self.__spec__ is not None and self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)


def _give_back(module: ModuleType, loader: Loader) -> None:
    """Leaves a module's own loader as what loaded it."""
    assert module.__spec__ is not None
    module.__spec__.loader = module.__loader__ = loader
