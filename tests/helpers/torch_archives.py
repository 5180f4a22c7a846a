"""Archives as torch.save writes them, of programs that it would not write."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch


def archive(path: Path, program: bytes, entries: dict[str, bytes] | None = None, compress: bool = False) -> Path:
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("archive/data.pkl", program)
        for name, content in (entries or {}).items():
            file.writestr(f"archive/{name}", content)
    return path


def program(storage: tuple, offset: object = 0, shape: object = (2,), stride: object = (1,)) -> bytes:
    """A state dict of one tensor "w" with whatever description."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self) -> object:
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, stride, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return storage if isinstance(value, Storage) else None

    out = io.BytesIO()
    Pickler(out, protocol=2).dump({"w": Tensor()})
    return out.getvalue()


FLOATS = ("storage", torch.FloatStorage, "0", "cpu", 2)
