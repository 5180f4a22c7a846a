"""The time of a step by its rows, in steps of one row: what it costs to compute several tokens at once. Plain numbers."""

from __future__ import annotations

from collections.abc import Mapping

from baize_engine.model.cost import WEIGHT_BITS


class StepCosts:
    """A line through measured points, which goes on as it ends.

    times: by the number of rows, in any unit; one row and at least one other. ValueError otherwise.
    """

    def __init__(self, times: Mapping[int, float]) -> None:
        if 1 not in times or len(times) < 2 or min(times) < 1 or min(times.values()) <= 0:
            raise ValueError(f"times are {dict(times)}, wanted those of 1 row and of other numbers, all above 0")
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


# Measured: milliseconds of a decode step of 1.26 billion weights on two cores of Zen 5 that read 48 GB/s, 128 tokens of
# context. bfloat16's are float16's within 13 %. At 79 GB/s int8 took 20.9, 26.7, 37, 41, 45, 49 and 61.5 for 1 to 6 and 8 rows.
ON_CPU = {
    "float32": {1: 101.5, 2: 109, 4: 129, 8: 164, 16: 206, 32: 311},
    "float16": {1: 50.5, 2: 57, 3: 65, 4: 75.5, 5: 74, 6: 76.5, 8: 84, 12: 106, 16: 137, 32: 258},
    "int8": {1: 27.5, 2: 35, 3: 36, 4: 38, 5: 42, 6: 47, 8: 57, 12: 95, 16: 123, 32: 235},
    "int4": {1: 17, 2: 19, 3: 23, 4: 25.5, 5: 33.5, 6: 36.5, 8: 42, 12: 56.5, 16: 69, 32: 126},
}

# Predicted, not measured: milliseconds of a decode step on H100, 7B, 512 tokens of context (benchmarks/predict.py --preset 7b
# --context 512). Up to 64 rows every weight is still read once; rows beyond 8 and 16 take larger tiles.
ON_GPU = {
    "float16": {1: 5.28, 2: 5.38, 4: 5.64, 8: 6.17, 16: 6.20, 32: 8.17, 64: 11.66},
    "int8": {1: 2.93, 2: 3.04, 4: 3.30, 8: 3.82, 16: 4.29, 17: 6.04, 32: 7.38, 33: 9.47, 64: 12.37},
    "int4": {1: 3.36, 2: 3.49, 4: 3.75, 8: 4.28, 16: 4.88, 17: 6.35, 32: 7.67, 33: 10.39, 64: 13.12},
}


def step_costs(kind: str, on_gpu: bool) -> StepCosts:
    """Of weights of a kind, those of cost.py; ValueError for any other. A float type without a table of its own has float16's.

    Other models and machines have other costs, but of a like shape: what is read once against what each row adds.
    """
    times = ON_GPU if on_gpu else ON_CPU
    if kind not in WEIGHT_BITS:
        raise ValueError(f"kind is {kind!r}, wanted one of {', '.join(WEIGHT_BITS)}")
    return StepCosts(times.get(kind, times["float16"]))
