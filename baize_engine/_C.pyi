"""The C++ host kernels. Buffers are C-contiguous objects of the buffer protocol, taken as bytes. Calls release the GIL.

dtypes are "float32", "float16" or "bfloat16". Wrong sizes or names, overlaps, and read-only or strided memory raise
ValueError, which names the argument, what it got and what it wanted; an implementation that this processor cannot run raises
RuntimeError.
"""

from typing_extensions import Buffer

CHUNK: int
"""Elements that are summed together (65536)."""
LANES: int
"""float64 accumulators per chunk (1024)."""

class Implementation:
    """The kernels of one instruction set. Functions take its name."""

    @property
    def name(self) -> str: ...
    def why_not(self) -> str | None:
        """None if this processor can run it, else the reason."""

def implementations() -> list[Implementation]:
    """Those of this build, best first; "scalar", which every processor runs, is the last.

    diff_add, widen, quantize, and the ops Embed, Sample and Advance give equal bits in all of them. Products, norms and
    attention sum in the lanes of the set's vectors: equal bits in "amx" and "avx512" only.
    """

def diff_add(
    base: tuple[Buffer, str],
    diff: tuple[Buffer, str],
    out: tuple[Buffer, str],
    *,
    implementation: str,
    threads: int = 1,
    subtract: bool = False,
) -> tuple[list[float], int, int]:
    """out = float32(diff) + float32(base), or diff - base with `subtract`, rounded once to nearest even.

    Each operand is a buffer and its dtype. All three buffers hold the same number of elements; `out` is writable and overlaps
    neither input. Every NaN becomes the canonical positive quiet NaN. Returns the sum of each chunk of CHUNK elements before
    rounding, the number of finite results that rounding made infinite, and the number of results that were NaN or infinite
    before it. The contract, with the order of the sums, is `diff_add` of kernels/reference.py; results depend neither on
    `implementation` nor on `threads` (1 to 1024).
    """

def diff_add_files(
    base: tuple[int, int, str, str],
    diff: tuple[int, int, str, str],
    out: tuple[Buffer, str],
    *,
    implementation: str,
    subtract: bool = False,
) -> tuple[list[float], int, int] | None:
    """`diff_add` on the calling thread over ranges of two open files, as many elements as `out` holds.

    `base` and `diff`: a file descriptor, the byte to read from on, the dtype, and the file's name. Reading and adding a chunk
    at a time keeps what was read in the processor's cache, which suits files in the page cache. Returns None if a file ends
    too early. OSError, with the name as its filename, if the system cannot read one. Either leaves `out` partly filled.
    """

def add_rows(acc: Buffer, rows: Buffer, dtype: str) -> None:
    """acc[c] += rows[r, c] for each row in order, in float64. `acc`: writable, a float64 per column; `rows`: whole rows."""

def widen(src: Buffer, dtype: str, out: Buffer, *, implementation: str | None = None) -> None:
    """out = float32(src), exact; a signalling float16 NaN becomes quiet. `out`: writable, 4 bytes per element of `src`.

    `implementation` as in diff_add; None takes the best one for this processor. All give equal bits.
    """

class Matrix:
    """A matrix (rows, columns) by address, in the layout that kernels/quantized.py defines.

    kind: "float32", "float16", "bfloat16", "int8" (scales: float32, per row) or "int4" (int8, per block, in panels).
    values, scales, factors: addresses; scales is 0 for the float kinds, factors (float32, per row) for all but int4.
    first: for int4, the place of row 0 in the first panel.
    """

    def __init__(
        self, kind: str, values: int, scales: int, rows: int, columns: int, factors: int = 0, first: int = 0
    ) -> None: ...

def quantize(implementation: str, weight: int, dtype: str, out: Matrix) -> None:
    """`quantize` of kernels/quantized.py for the matrix of float type `dtype` at address `weight`, on the calling thread.

    The caller checks shapes and types (backend/cpp_ops.py). ValueError if a value is not finite; `out` is then partly filled.
    """

# The ops of a plan follow the functions of these names in kernels/reference.py. Operands that are tensors there are addresses
# here, and sizes are arguments of their own. Float operands are float32; keys and values have type `cache`; ids, positions
# and slots are int64; tables, starts and lens int32, and positions too with `narrow`. `best` may be 0: none.

class Embed:
    def __init__(self, *, ids: int, tokens: int, kind: str, weight: int, rows: int, hidden: int, out: int) -> None: ...

class QkvRopeStore:
    def __init__(
        self,
        *,
        x: int,
        tokens: int,
        norm: int,
        eps: float,
        weights: list[Matrix],
        cos: int,
        sin: int,
        turns: int,
        positions: int,
        cache: str,
        keys: int,
        values: int,
        places: int,
        slots: int,
        heads: int,
        kv_heads: int,
        dim: int,
        q: int,
        int8_activations: bool,
    ) -> None:
        """`turns`: rows of cos and sin. `places`: rows of keys and values."""  # fmt: skip

class Attention:
    def __init__(
        self, *, q: int, cache: str, keys: int, values: int, block_tables: int, query_starts: int, context_lens: int,
        tokens: int, sequences: int, table_stride: int, heads: int, kv_heads: int, dim: int, block: int, blocks: int,
        scale: float, out: int,
    ) -> None: ...  # fmt: skip

class LinearAdd:
    def __init__(self, *, x: int, tokens: int, weight: Matrix, out: int, int8_activations: bool) -> None: ...

class SegmentSums:
    def __init__(
        self, *, x: int, tokens: int, segments: int, weight: Matrix, out: int, int8_activations: bool
    ) -> None: ...  # fmt: skip

class AddSums:
    def __init__(self, *, sums: int, ranks: int, tokens: int, width: int, out: int) -> None: ...

class GateUp:
    def __init__(
        self, *, x: int, tokens: int, norm: int, eps: float, weights: list[Matrix], out: int, int8_activations: bool
    ) -> None: ...

class Head:
    def __init__(self, *, x: int, tokens: int, norm: int, eps: float, weight: Matrix, out: int, best: int) -> None: ...

class Sample:
    def __init__(
        self, *, logits: int, best: int, rows: int, vocabulary: int, temperature: int, top_k: int, top_p: int, min_p: int,
        seeds: int, sample_index: int, positions: int, narrow: bool, out: int,
    ) -> None: ...  # fmt: skip

class Advance:
    def __init__(
        self, *, tokens: int, rows: int, ids: int, positions: int, slots: int, lens: int, left: int, stops: int,
        stops_of_row: int, block_tables: int, table_stride: int, block: int,
    ) -> None: ...  # fmt: skip

PlanOp = Embed | QkvRopeStore | Attention | LinearAdd | SegmentSums | AddSums | GateUp | Head | Sample | Advance

class Plan:
    """Ops of the decoder over memory at fixed addresses, which one call runs in order.

    The caller checks shapes and types (backend/cpp_ops.py) and keeps the memory alive.
    """

    def __init__(self, implementation: str, threads: int) -> None:
        """The work is divided for teams of `threads` (1 to 1024); `run` takes any number, with the same bits."""

    def append(self, op: PlanOp) -> None: ...
    def run(self, threads: int) -> None:
        """Runs the ops on `threads` threads (1 to 1024) without the GIL.

        RuntimeError if another thread is already running them; IndexError if a token id, position, slot or context has no
        row.
        """
