"""Names of tensors without the prefix of a wrapper in which the model was trained and saved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from baize_engine.checkpoint.entry import Entry
from baize_engine.checkpoint.names import EMBED
from baize_engine.errors import MismatchError

# A reward model of AlpacaFarm; DistributedDataParallel and DeepSpeed; a PEFT model that was saved whole; torch.compile; FSDP.
_WRAPPERS = re.compile(r"((backbone_model|module|base_model\.model|_orig_mod|_fsdp_wrapped_module)\.)+")


@dataclass(frozen=True)
class Unwrapped:
    """Entries by the names of the model itself, and the `prefix` that was removed; "" where there was none."""

    entries: Mapping[str, Entry]
    prefix: str


def unwrapped(entries: Mapping[str, Entry], where: str) -> Unwrapped:
    """Removes the prefix of a known wrapper from every name that has it; others stay, such as that of a reward model's head.

    MismatchError where two tensors of the folder `where` would then have the same name.
    """
    prefix = next((name[: -len(EMBED)] for name in entries if name.endswith(f".{EMBED}")), "")
    if EMBED in entries or not _WRAPPERS.fullmatch(prefix):
        return Unwrapped(entries, "")
    bare: dict[str, Entry] = {}
    for name, entry in entries.items():
        short = name.removeprefix(prefix)
        if short in bare:
            raise MismatchError(f"{where} holds {short} twice, with and without the prefix {prefix!r}: wanted it once")
        bare[short] = replace(entry, name=short)
    return Unwrapped(bare, prefix)
