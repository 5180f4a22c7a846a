"""The C++ host kernels. Buffers are any C-contiguous objects of the buffer protocol, taken as bytes; the GIL is dropped.

dtypes are "float32", "float16" or "bfloat16". Wrong sizes, names, overlaps, read-only or strided memory raise ValueError that
names the argument, what it got and what it wanted; a variant that this processor cannot run raises RuntimeError.
"""

from typing_extensions import Buffer

CHUNK: int
"""Elements whose sum is taken as one (65536)."""
LANES: int
"""float64 accumulators of a chunk (1024)."""

def diff_add_variants() -> list[str]:
    """Names of the variants in this build, best first; "scalar" is the last."""

def why_not(variant: str) -> str | None:
    """None where this processor can run `variant`, else the reason."""

def diff_add(
    base: Buffer,
    base_dtype: str,
    diff: Buffer,
    diff_dtype: str,
    out: Buffer,
    out_dtype: str,
    *,
    variant: str,
    threads: int = 1,
    subtract: bool = False,
) -> tuple[list[float], int, int]:
    """out = float32(diff) + float32(base), or diff - base with `subtract`, rounded once to nearest even.

    All three buffers hold the same number of elements; `out` is writable and overlaps neither input. Every NaN becomes the
    canonical positive quiet NaN. Returns (sums of the chunks of CHUNK elements before rounding, finite sums that became
    infinite, sums that were NaN or infinite). The contract, with the order of the sums, is `diff_add` of
    kernels/reference.py; results depend neither on `variant` nor on `threads` (1 to 1024).
    """

def add_rows(acc: Buffer, rows: Buffer, dtype: str) -> None:
    """acc[c] += rows[r, c] for each row in order, in float64. `acc`: writable float64, one a column; `rows`: whole rows."""

def widen(src: Buffer, dtype: str, out: Buffer, *, variant: str | None = None) -> None:
    """out = float32(src), exact; a signalling float16 NaN becomes quiet. `out`: writable, 4 bytes an element of `src`.

    `variant` as in diff_add; None takes the best that this processor runs. All give equal bits.
    """
