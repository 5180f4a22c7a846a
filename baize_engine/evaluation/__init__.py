"""The tasks of the model card: prompts, predictions and metrics, and `evaluate`, which runs them on an engine."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["evaluate"]

if TYPE_CHECKING:
    from baize_engine.evaluation.run import evaluate


def __getattr__(name: str) -> Any:
    """`evaluate` when it is first used: the help of `baize eval` names the tasks without an engine."""
    if name != "evaluate":
        raise AttributeError(f"module 'baize_engine.evaluation' has no attribute {name!r}")
    return import_module("baize_engine.evaluation.run").evaluate
