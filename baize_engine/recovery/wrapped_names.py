"""Names of tensors without the prefix of a wrapper in which the model was trained and saved."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from baize_engine.checkpoint.entry import Entry
from baize_engine.checkpoint.names import EMBED
from baize_engine.errors import MismatchError

# A reward model of AlpacaFarm; DistributedDataParallel and DeepSpeed; a PEFT model that was saved whole; torch.compile; FSDP.
_WRAPPERS = re.compile(r"((backbone_model|module|base_model\.model|_orig_mod|_fsdp_wrapped_module)\.)+")


def wrapper_of(names: Collection[str]) -> str:
    """The prefix that a known wrapper gave to the names of a model's tensors; "" where there is none."""
    prefix = next((name[: -len(EMBED)] for name in names if name.endswith(f".{EMBED}")), "")
    return prefix if EMBED not in names and _WRAPPERS.fullmatch(prefix) else ""


def unwrapped(entries: Mapping[str, Entry], where: str) -> dict[str, Entry]:
    """Removes a wrapper's prefix from every name that has it; others stay, such as that of a reward model's head.

    MismatchError where two tensors of the folder `where` would then have the same name.
    """
    prefix = wrapper_of(entries)
    bare: dict[str, Entry] = {}
    for name, entry in entries.items():
        short = name.removeprefix(prefix)
        if short in bare:
            raise MismatchError(f"{where} holds {short} twice, with and without the prefix {prefix!r}: wanted it once")
        bare[short] = replace(entry, name=short) if prefix else entry
    return bare
