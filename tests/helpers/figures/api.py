"""The numbers of docs/api.md: none was measured."""

from __future__ import annotations

from collections.abc import Iterator


def claims() -> Iterator[str]:
    """Nothing of the page was measured."""
    yield from ()


STATED = {
    "0.0 for an empty one": "the sum over no tokens",
}
