"""option(): a field of a dataclass of options, with what its flag on the command line needs. Knows no options."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, text: str, **flag: Any) -> Any:
    """A field with its default, the help text of its flag, and other settings of the flag as argparse takes them."""
    return field(default=default, metadata={"help": text, **flag})
