"""The time of a step by its rows, in steps of one row: what it costs to compute several tokens at once. Plain numbers."""

from __future__ import annotations

from collections.abc import Mapping

from baize_engine.model.cost import WEIGHT_BITS


class StepCosts:
    """A line through measured points, which goes on as it ends.

    times: by the number of rows, in any unit; one row and at least one other. ValueError otherwise.
    verifying: what a step that verifies takes besides, in steps of one row: the host's work for it.
    """

    def __init__(self, times: Mapping[int, float], verifying: float = 0.0) -> None:
        if 1 not in times or len(times) < 2 or min(times) < 1 or min(times.values()) <= 0:
            raise ValueError(f"times are {dict(times)}, wanted those of 1 row and of other numbers, all above 0")
        self.verifying = verifying
        self._times = [1.0]  # of 1 row, of 2, ...
        self._slope = 0.0  # after the last
        for rows in sorted(times)[1:]:
            last, more = self._times[-1], rows - len(self._times)
            self._slope = (times[rows] / times[1] - last) / more
            self._times += [last + self._slope * n for n in range(1, more + 1)]

    def of(self, rows: int) -> float:
        """The time of a step of `rows` rows, at least one, by that of one row."""
        if rows < 1:
            raise ValueError(f"rows are {rows}, wanted at least 1")
        beyond = rows - len(self._times)
        return self._times[rows - 1] if beyond <= 0 else self._times[-1] + self._slope * beyond


# Measured: milliseconds of a step of 1.26 billion weights on two cores of Zen 5, reading 48 to 60 GB/s. float16, int8 and int4
# up to 8 rows: of one sequence of 512 tokens (benchmarks/bench_kernels.py --verify 512); the others: sequences of 128, by the
# kernels before those, set in proportion to the 8 rows. bfloat16's are float16's within 13 %. Where memory is faster, rows cost
# more: 4 rows of int8 took 1.3 steps here, and 1.8 at 79 GB/s by the kernels before.
ON_CPU = {
    "float32": {1: 101.5, 2: 109, 4: 129, 8: 164, 16: 206, 32: 311},
    "float16": {1: 43.6, 2: 48.4, 3: 53.9, 4: 58.4, 5: 60.0, 6: 67.3, 7: 73.1, 8: 82.4, 12: 104, 16: 134, 32: 253},
    "int8": {1: 26.2, 2: 28.1, 3: 30.6, 4: 34.2, 5: 37.3, 6: 40.3, 7: 46.8, 8: 51.3, 12: 85, 16: 111, 32: 211},
    "int4": {1: 20.5, 2: 22.5, 3: 23.3, 4: 23.6, 5: 25.0, 6: 25.0, 7: 26.5, 8: 29.0, 12: 39, 16: 48, 32: 87},
}

# Predicted, not measured: milliseconds of a decode step on H100, 7B, 512 tokens of context (benchmarks/predict.py --preset 7b
# --context 512). Up to 64 rows every weight is still read once; rows beyond 8 and 16 take larger tiles.
ON_GPU = {
    "float16": {1: 5.28, 2: 5.38, 4: 5.64, 8: 6.17, 16: 6.20, 32: 8.17, 64: 11.66},
    "int8": {1: 2.93, 2: 3.04, 4: 3.30, 8: 3.82, 16: 4.29, 17: 6.04, 32: 7.38, 33: 9.47, 64: 12.37},
    "int4": {1: 3.36, 2: 3.49, 4: 3.75, 8: 4.28, 16: 4.88, 17: 6.35, 32: 7.67, 33: 10.39, 64: 13.12},
}


# Measured on Zen 5 with 125 million weights: seconds of the host's work in a decode step, and what one that verifies adds.
HOST, VERIFYING = 110e-6, 110e-6
READ = {False: 48e9, True: 2.6e12}  # bytes a second, by whether it is a GPU: measured on Zen 5, predicted for H100


def step_costs(kind: str, on_gpu: bool, step_bytes: int | None = None) -> StepCosts:
    """Of weights of a kind, those of cost.py; ValueError for any other. A float type without a table of its own has float16's.

    step_bytes: bytes of weights that a step reads; None: so many that the host's work is negligible.

    Other models and machines have other costs, but of a similar shape: what is read once, and what each row adds.
    """
    times = ON_GPU if on_gpu else ON_CPU
    if kind not in WEIGHT_BITS:
        raise ValueError(f"kind is {kind!r}, wanted one of {', '.join(WEIGHT_BITS)}")
    verifying = 0.0 if step_bytes is None else VERIFYING / (HOST + step_bytes / READ[on_gpu])
    return StepCosts(times.get(kind, times["float16"]), verifying)
