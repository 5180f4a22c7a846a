"""BatchOptions: how a file of prompts is answered, checked where it is made. Knows no engine and no files."""

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
    """How a file of prompts is answered. RequestError names the field that is wrong.

    params, text: of records that name none of their own. extra_columns: what becomes of a record's names that mean nothing
    here: "error", its error; "keep", they are repeated in its answer under "extra"; "drop", nothing. window: records given to
    the engine at a time, many batches of them: rows are empty only at a window's end, when its last samples run alone.

    The metadata of a field are the settings of its flag, as argparse takes them.
    """

    params: SamplingParams = field(default_factory=SamplingParams)
    text: TextOptions = AS_FILES_SAY
    extra_columns: str = option(
        "error",
        "with --input: what a record's names mean that are not listed here: error, the record is refused; keep, its answer "
        'repeats them under "extra"; drop, nothing',
        choices=EXTRA_COLUMNS,
    )
    window: int = option(
        1024,
        "with --input: prompts given to the model at a time; more of them use it better and take memory",
        metavar="N",
    )

    def __post_init__(self) -> None:
        if self.extra_columns not in EXTRA_COLUMNS:
            raise RequestError(f"extra_columns is {self.extra_columns!r}, wanted {', '.join(EXTRA_COLUMNS)}")
        object.__setattr__(self, "window", count("window", self.window, 1))
