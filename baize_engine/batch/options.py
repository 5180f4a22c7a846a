"""The options for answering a file of prompts, checked when they are made. Knows no engine and no files."""

from __future__ import annotations

from dataclasses import dataclass, field

from baize_engine.errors import RequestError
from baize_engine.fields import option
from baize_engine.generation.params import SamplingParams
from baize_engine.options import count
from baize_engine.text.options import AS_FILES_SAY, TextOptions

EXTRA_COLUMNS = ("error", "keep", "drop")


@dataclass(frozen=True)
class BatchOptions:
    """Options for answering a file of prompts. Raises RequestError, which names the field, where a value is wrong.

    params, text: for records that give none of their own. extra_columns: what happens to values under unknown names in a
    record: "error", the record is refused; "keep", its answer repeats them under "extra"; "drop", they are ignored. window:
    records passed to the engine at a time. It should be many batches: rows are idle only at the end of a window, while the
    last samples finish.

    The metadata of each field are the settings of its flag for argparse.
    """

    params: SamplingParams = field(default_factory=SamplingParams)
    text: TextOptions = AS_FILES_SAY
    extra_columns: str = option(
        "error",
        "with --input: what to do with unknown names in a record: error refuses the record, keep copies their values to its "
        'answer under "extra", drop ignores them',
        choices=EXTRA_COLUMNS,
    )
    window: int = option(
        1024,
        "with --input: number of records passed to the model at a time; more keep it busier, but take more memory",
        metavar="N",
    )

    def __post_init__(self) -> None:
        if self.extra_columns not in EXTRA_COLUMNS:
            raise RequestError(f"extra_columns is {self.extra_columns!r}, wanted {', '.join(EXTRA_COLUMNS)}")
        object.__setattr__(self, "window", count("window", self.window, 1))
