"""The settings that `recover`, `make_diff` and `Engine.from_diff` share, checked where they are made.

The command line makes a flag of each field from its metadata (`cli/recover.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from baize_engine.backend.devices import resolve_device
from baize_engine.checkpoint.dtypes import FLOATS
from baize_engine.checkpoint.manifest import MAKE_DIFF, RECOVER
from baize_engine.errors import MismatchError, RequestError
from baize_engine.fields import option
from baize_engine.recovery.memory import MEMORY_MIB, check_memory

NEW_ROWS = ("auto", "mean", "zero")


@dataclass(frozen=True, kw_only=True)
class RecoveryOptions:
    """How a base and its diff, or its finetuned model, are combined. The docstring of `recover` explains each field.

    Raises RequestError, MismatchError (dtype) or BackendError (device) where a value is not one of those allowed.
    """

    dtype: str = option("float16", "type of the weights to write", choices=FLOATS)
    device: str = option("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    resume: bool = option(
        False, "keep what is finished if the run ends early, and continue such a run of the same arguments"
    )
    new_rows: str = option(
        "auto",
        "what to add to the rows of new tokens, which the base lacks: mean, of the base's rows (alpaca, open-instruct), zero "
        "(Vicuna v0, StableVicuna, Wombat, LLaVA, gisting), or auto, which means zero if the rows are plainly not differences",
        choices=NEW_ROWS,
    )
    drop_rows: bool = option(
        False, "leave out the base's last tokens if it has more than the other side: tokens that were added by hand"
    )
    keep_extra: bool = option(
        False,
        "keep tensors that the base lacks as they are, rounded to --dtype (LLaVA's projector, a reward model's head)",
    )
    follow_links: bool = option(
        False, "also copy config, tokenizer and licence files that are symbolic links out of their folder"
    )
    force: bool = option(False, "continue even if configs or norm weights look wrong; shapes must still match")
    hash_sources: bool = option(False, "record a SHA-256 of every source file in the manifest")
    memory_mib: int = option(
        MEMORY_MIB,
        "memory limit of the run in MiB, whatever the model's size; on a GPU, torch's own memory comes on top",
        flag="--memory",
        metavar="MIB",
    )
    progress: bool = True
    operation: str = RECOVER  # or MAKE_DIFF

    def __post_init__(self) -> None:
        if self.dtype not in FLOATS:
            raise MismatchError(f"dtype {self.dtype!r} is not one of {', '.join(FLOATS)}")
        if self.new_rows not in NEW_ROWS:
            raise RequestError(f"new_rows is {self.new_rows!r}, wanted 'auto', 'mean' or 'zero'")
        check_memory(self.memory_mib)
        resolve_device(self.device)

    @property
    def subtract(self) -> bool:
        """Whether the result is other - base (make_diff) and not other + base (recover)."""
        return self.operation == MAKE_DIFF

    @property
    def role(self) -> str:
        """The manifest's word for the side that is combined with the base."""
        return "tuned" if self.subtract else "diff"

    @property
    def other_side(self) -> str:
        """The messages' word for it."""
        return "finetuned model" if self.subtract else "diff"
