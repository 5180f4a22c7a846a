"""baize_engine: recover LLaMA finetunes published as weight diffs, and run them.

Importing this package loads neither torch nor triton; each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ERRORS = (
    "BackendError", "BaizeError", "BaizeWarning", "CheckpointError", "ConfigError", "DataError", "DistributedError",
    "MismatchError", "OutputError", "RequestError", "ValueRefused",
)  # fmt: skip
_HOMES = {
    "Engine": "baize_engine.engine",
    "Completion": "baize_engine.engine",
    "SamplingParams": "baize_engine.generation.params",
    "recover": "baize_engine.recovery.recover",
    "make_diff": "baize_engine.recovery.make_diff",
    "verify": "baize_engine.recovery.verify",
    "xor": "baize_engine.recovery.xor.xor",
    "quantize": "baize_engine.model.quantize",
    **dict.fromkeys(_ERRORS, "baize_engine.errors"),
}

__all__ = [  # noqa: RUF022 - functions and classes, then errors
    "Completion", "Engine", "SamplingParams", "make_diff", "quantize", "recover", "verify", "xor",
    "BackendError", "BaizeError", "BaizeWarning", "CheckpointError", "ConfigError", "DataError", "DistributedError",
    "MismatchError", "OutputError", "RequestError", "ValueRefused",
]  # fmt: skip

if TYPE_CHECKING:
    from baize_engine.engine import Completion, Engine
    from baize_engine.errors import (
        BackendError,
        BaizeError,
        BaizeWarning,
        CheckpointError,
        ConfigError,
        DataError,
        DistributedError,
        MismatchError,
        OutputError,
        RequestError,
        ValueRefused,
    )
    from baize_engine.generation.params import SamplingParams
    from baize_engine.model.quantize import quantize
    from baize_engine.recovery.make_diff import make_diff
    from baize_engine.recovery.recover import recover
    from baize_engine.recovery.verify import verify
    from baize_engine.recovery.xor.xor import xor


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'baize_engine' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
