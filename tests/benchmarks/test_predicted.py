"""A profile beside its prediction: which times are compared, and what a report must have."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import predict
import predicted
import pytest
from cards import CARDS

H100 = CARDS["h100"]
CASE = {"preset": "13b", "kind": "float16", "batch": 1, "context": 128}


def profile(**changes: Any) -> dict[str, Any]:
    """As profile_step.py reports: gate_up by itself and in the step, head by itself alone, sample failed."""
    rows = [
        {"op": "step", "calls": 1, "us": 9300.0},
        {"op": "gate_up", "calls": 40, "us": 3000.0, "in_step_us": 4000.0},
        {"op": "head", "calls": 1, "us": 130.0},
        {"op": "sample", "problem": "RuntimeError: out of memory"},
    ]
    return {"device": "NVIDIA H100 80GB HBM3", **CASE, "rows": rows, **changes}


def test_the_time_within_the_step_goes_before_that_alone() -> None:
    by_op = {row["op"]: row for row in predict.step(H100, **CASE)}
    gate_up, head, step = predicted.rows(profile(), H100)
    assert (gate_up["op"], gate_up["measured_us"]) == ("gate_up", 4000.0)
    assert gate_up["ratio"] == pytest.approx(4000.0 / by_op["gate_up"]["us"])
    assert (head["op"], head["measured_us"]) == ("head", 130.0)
    ms = predict.totals(list(by_op.values()), H100, **CASE)["step_ms"]
    assert (step["op"], step["predicted_us"], step["measured_us"]) == ("step", pytest.approx(ms * 1e3), 9300.0)
    assert step["ratio"] == pytest.approx(9.3 / ms)


def test_the_card_is_the_profiles_unless_one_is_named() -> None:
    assert predicted.card(profile(), None) is H100
    assert predicted.card(profile(), "a100") is CARDS["a100"]
    with pytest.raises(ValueError, match=r"'some GPU' is not in benchmarks/cards\.py; --card names one"):
        predicted.card(profile(device="some GPU"), None)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(profile()))
    (tmp_path / "other.json").write_text('{"device": "some GPU", "rows": []}')

    def main(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["predicted.py", *words])
        return predicted.main()

    assert main("--from_json", str(tmp_path / "profile.json")) == 0
    whole = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (whole["card"], whole["profiled"], whole["preset"]) == ("h100", "NVIDIA H100 80GB HBM3", "13b")
    assert [row["op"] for row in whole["rows"]] == ["gate_up", "head", "step"]
    for name, said in (("other", "preset, kind, batch, context not in it"), ("none", "No such file")):
        with pytest.raises(SystemExit):
            main("--from_json", str(tmp_path / f"{name}.json"))
        assert said in capsys.readouterr().err
