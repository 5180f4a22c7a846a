"""Finds the state dict in a torch file: the whole value, or a dict that a trainer keeps beside optimizer, step and settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baize_engine.checkpoint.pickle_program import Tensor
from baize_engine.errors import CheckpointError
from baize_engine.printable import shown

# the key of Lightning, of most others, of DeepSpeed, of torch's manual
WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
DEPTH = 4  # nested dicts that are searched for tensors, for the message
LISTED = 2  # places of tensors in a message
MOST = 32  # characters of a key in a message
_PLAIN = re.compile(rf"[\w.-]{{1,{MOST}}}", re.ASCII)  # keys that are safe in a command

Keys = tuple[Any, ...]


def state_of(path: Path, found: Any) -> dict[Any, Any]:
    """The state dict in `found`, the value that the file `path` holds. CheckpointError if it is ambiguous, or nested deeper.

    It is `found` itself, or the value of one of WRAPPERS if no other key holds a dict of tensors. The caller checks its items.
    """
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, wanted a dict of tensors")
    if any(isinstance(value, Tensor) for value in found.values()):
        return found
    inner = _dicts_of_tensors(found)
    if not inner:
        return found
    top = [keys for keys in inner if len(keys) == 1]
    if len(top) == 1 and top[0][0] in WRAPPERS:
        return inner[top[0]]
    weights = [keys for keys, state in inner.items() if any(name.endswith(".weight") for name in state)]
    likeliest = sorted(weights or inner, key=lambda keys: not set(keys).intersection(WRAPPERS))
    raise CheckpointError(_refusal(path, likeliest))


def rewriting(keys: Sequence[Any] = ()) -> str:
    """The advice, with a command, to rewrite a torch file with only what is under `keys`."""
    plain = [key if _PLAIN.fullmatch(str(key)) else "KEY" for key in keys]
    state = f"torch.load('OLD', map_location='cpu', weights_only=True){''.join(f'[{key!r}]' for key in plain)}"
    return f"replace it by NEW: python -c \"import torch; torch.save({state}, 'NEW')\""


def _refusal(path: Path, places: list[Keys]) -> str:
    listed = " and ".join(" > ".join(shown(str(key))[:MOST] for key in keys) for keys in places[:LISTED])
    more = f" and {len(places) - LISTED} more" if len(places) > LISTED else ""
    which = "it" if len(places) == 1 else "the one that is the model's"
    wanted = f"one dict of them, alone or as {', '.join(WRAPPERS)}"
    remedy = f"If you trust it, write {which} anew and {rewriting(places[0])}"
    return f"{path}: its tensors are in {listed}{more}, wanted {wanted}. {remedy}"


def _dicts_of_tensors(outer: dict[Any, Any]) -> dict[Keys, dict[str, Tensor]]:
    """The dicts of names to tensors below `outer`, each once, by the keys that lead to it; the least deep first."""
    found: dict[Keys, dict[str, Tensor]] = {}
    seen = {id(outer)}  # a program may put a dict into itself, or into a million others
    level: list[tuple[Keys, dict[Any, Any]]] = [((), outer)]
    for _ in range(DEPTH):
        below: list[tuple[Keys, dict[Any, Any]]] = []
        for above, container in level:
            for key, value in container.items():
                if not isinstance(value, dict) or id(value) in seen:
                    continue
                seen.add(id(value))
                keys = (*above, key)
                if value and all(type(name) is str and isinstance(item, Tensor) for name, item in value.items()):
                    found[keys] = value
                else:
                    below.append((keys, value))
        level = below
    return found
