"""How pages write figures."""

from __future__ import annotations


def three(value: float) -> str:
    """A value with three digits, and no more than it has before the point: 0.808, 3.04, 46.9, 203, 1234."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def cells(*values: str) -> str:
    """The row of a table."""
    return f"| {' | '.join(values)} |"
