"""The figures of docs/recovering.md: limits and constants of the code. Measured ones are on pages of their own."""

from __future__ import annotations

from collections.abc import Iterator

from shapes import PRESETS

from baize_engine.recovery.memory import MEMORY_MIB, check_memory
from baize_engine.recovery.new_rows import WHOLE_COSINE, WHOLE_SIZES
from baize_engine.recovery.published_sum import PUBLISHED, TOLERANCE

ALPACA = PUBLISHED[0]


def claims() -> Iterator[str]:
    """Nothing on this page was measured."""
    yield from ()


def least_memory() -> int:
    """The least --memory that is taken."""
    for mib in range(1, MEMORY_MIB):
        try:
            check_memory(mib)
        except ValueError:
            continue
        return mib
    raise LookupError(f"no limit below {MEMORY_MIB} MiB is taken")


def rotary_sum(layers: int, head: int = 128, theta: float = 10000.0) -> float:
    """What the rotary buffers of a LLaMA add to the sum of all weights."""
    return layers * sum(theta ** (-even / head) for even in range(0, head, 2))


STATED: dict[str, str] = {
    f"({PRESETS['13b'].parameters * 2 / 1e9:.0f} GB for a 13B in float16)": "follows from the shape",
    f"the run takes {MEMORY_MIB} MiB at most": "the default of --memory",
    f"the base's mean row is at least {WHOLE_COSINE} and it is {WHOLE_SIZES[0]} to {WHOLE_SIZES[1]:g} times as long": (
        "how a whole row is recognised"
    ),
    f"within {TOLERANCE}; alpaca-7B's is {ALPACA.sum}": "the tolerance of weight_diff.py, and its constant",
    f"go further astray than {TOLERANCE}": "the tolerance of weight_diff.py",
    f"AlpacaFarm's sums agree to {1e-5 * ALPACA.sum:.1f} only": "1e-5 of a 7B's sum, the tolerance of its script (np.isclose)",
    f"which counted: {rotary_sum(ALPACA.layers):.1f} in all at 7B": "follows from the buffers' formula",
    f"{MEMORY_MIB} unless given, {least_memory()} at least": "the default of --memory and the least it takes",
}
