"""examples/profile_step.py: its table has every op of a step, with the bytes of the cost model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import decode_step as decode_steps
import pytest
from assets import REPO
from common import Spread
from example_runs import output

from baize_engine import quantize
from baize_engine.model.config import ModelConfig
from baize_engine.model.cost import OpCost, decode_step

NAME = "profile_step.py"


def timed(costs: list[OpCost]) -> list[str]:
    """The ops of a step in their order: those of the cost model, after the one that moves the state on."""
    return ["advance", *(each.name for each in costs)]


@pytest.mark.parametrize(
    ("kind", "flags"), [("float16", ()), ("int8", ("--quantize", "int8")), ("int8", ("--model", "int8"))]
)
def test_every_op_is_timed(demo: Path, tmp_path: Path, kind: str, flags: tuple[str, ...]) -> None:
    quantize(demo, tmp_path / "int8")
    batch, context = (1, 128) if kind == "float16" else (3, 40)
    given = ("--model", demo, "--batch", batch, "--context", context, *flags)
    head, *rows = output(NAME, *given, folder=tmp_path)
    assert head.split() == ["op", "calls", "us", "MB", "GB/s"]
    config = ModelConfig.from_folder(demo)
    costs = decode_step(config, kind, batch, context, "float32")
    found = [row.rsplit(maxsplit=4) for row in rows]
    assert [name.strip() for name, *_ in found] == timed(costs)
    for (name, calls, us, megabytes, speed), moved in zip(found, [0, *(each.bytes for each in costs)], strict=True):
        assert int(calls) == (1 if name.strip() in ("advance", "embed", "head", "sample") else config.num_layers)
        assert megabytes == f"{moved / 1e6:.3f}"
        # the last digits of the time and of the speed are rounded
        low, high = ((float(us) + half) * (float(speed) + half / 10) for half in (-0.051, 0.051))
        assert low <= moved / 1e3 <= high


@pytest.mark.parametrize("on_gpu", [False, True])
def test_each_op_has_its_own_time(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_gpu: bool
) -> None:
    costs = decode_step(ModelConfig.from_folder(demo), "float16", 1, 128, "float32")
    seconds = {name: Spread.of([(1 + number) / 1e6]) for number, name in enumerate(timed(costs))}
    made: list[object] = []  # the calls that were timed as on a GPU

    def of_calls(calls: list[object], repeats: int) -> Spread:
        made.extend(calls)
        return Spread.of([len(calls) / 1e6])

    monkeypatch.setattr(decode_steps, "times_on_cpu", lambda *of: ({} if on_gpu else seconds, []))
    monkeypatch.setattr(decode_steps, "time_on_gpu", of_calls)
    monkeypatch.setattr("baize_engine.loading.resolve_device", lambda device: "cpu")
    monkeypatch.setattr(sys, "argv", [NAME, "--model", str(demo)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(REPO / "examples" / NAME))
    rows = [row.rsplit(maxsplit=4)[1:] for row in capsys.readouterr().out.splitlines()[1:]]
    times = [us for _, us, *_ in rows]
    if on_gpu:
        assert times == [f"{float(calls):.1f}" for calls, *_ in rows]
        assert len(made) == len(set(map(id, made))) == sum(int(calls) for calls, *_ in rows)
    else:
        assert times == [f"{1 + number:.1f}" for number in range(len(rows))]
        assert not made
