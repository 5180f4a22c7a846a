"""Which dict of a torch file is its state dict: all of it, or the one that a trainer keeps beside optimizer, step and settings.

Nothing else of such a file is looked at: its other tensors are never read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baize_engine.checkpoint.pickle_values import Tensor
from baize_engine.errors import CheckpointError
from baize_engine.printable import shown

# Lightning's, most others', DeepSpeed's, torch's manual's
WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
DEPTH = 4  # dicts in dicts that are looked through, to name in a refusal where the tensors are
LISTED = 2
MOST = 32  # characters of a key that are shown
_PLAIN = re.compile(rf"[\w.-]{{1,{MOST}}}", re.ASCII)  # keys that may stand in a command

Keys = tuple[Any, ...]


def state_of(path: Path, found: Any) -> dict[Any, Any]:
    """The state dict in `found`, which the file `path` holds. CheckpointError where that is not one dict, or not at hand.

    It is the whole of `found`, or what one of WRAPPERS stands for if no other key holds a dict of tensors. What else is wrong
    with it is for the caller to see.
    """
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, wanted a dict of tensors")
    if any(isinstance(value, Tensor) for value in found.values()):
        return found
    inner = _dicts_of_tensors(found)
    top = [keys for keys in inner if len(keys) == 1]
    if len(top) == 1 and top[0][0] in WRAPPERS:
        return inner[top[0]]
    if not inner:
        return found
    weights = [keys for keys, state in inner.items() if any(name.endswith(".weight") for name in state)]
    likeliest = sorted(weights or inner, key=lambda keys: not set(keys).intersection(WRAPPERS))
    raise CheckpointError(_refusal(path, likeliest))


def rewriting(keys: Sequence[Any] = ()) -> str:
    """The command that writes anew what lies under `keys` in a torch file."""
    plain = [key if _PLAIN.fullmatch(str(key)) else "KEY" for key in keys]
    state = f"torch.load('OLD', map_location='cpu', weights_only=True){''.join(f'[{key!r}]' for key in plain)}"
    return f"put NEW in its place: python -c \"import torch; torch.save({state}, 'NEW')\""


def _refusal(path: Path, places: list[Keys]) -> str:
    listed = " and ".join(" > ".join(shown(str(key))[:MOST] for key in keys) for keys in places[:LISTED])
    more = f" and {len(places) - LISTED} more" if len(places) > LISTED else ""
    which = "it" if len(places) == 1 else "the one that is the model's"
    return (
        f"{path}: its tensors are in {listed}{more}, wanted one dict of them, alone or as {', '.join(WRAPPERS)}. If you trust "
        f"it, write {which} anew and {rewriting(places[0])}"
    )


def _dicts_of_tensors(outer: dict[Any, Any]) -> dict[Keys, dict[str, Tensor]]:
    """The dicts of names to tensors below `outer`, each once, by the keys that lead there; the nearest first."""
    found: dict[Keys, dict[str, Tensor]] = {}
    seen = {id(outer)}  # a program may put a dict in itself, and in a million others
    level: list[tuple[Keys, dict[Any, Any]]] = [((), outer)]
    for _ in range(DEPTH):
        below: list[tuple[Keys, dict[Any, Any]]] = []
        for above, container in level:
            for key, value in container.items():
                if not isinstance(value, dict) or id(value) in seen:
                    continue
                seen.add(id(value))
                keys = (*above, key)
                if value and all(type(name) is str and isinstance(each, Tensor) for name, each in value.items()):
                    found[keys] = value
                else:
                    below.append((keys, value))
        level = below
    return found
