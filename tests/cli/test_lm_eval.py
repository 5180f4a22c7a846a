"""`baize lm_eval`: its arguments reach the harness as they were typed."""

from __future__ import annotations

import pytest

from baize_engine.cli import main
from baize_engine.errors import BaizeError


@pytest.mark.parametrize("command", ["lm_eval", "lm-eval"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["--tasks", "a,b", "--model-args", "pretrained=x,device=cpu", "--batch_size=auto"],
        ["run", "--help"],
        ["ls", "tasks"],
        ["--", "--path_raw", "-x"],
        [],
    ],
)
def test_arguments_pass_untouched(command: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("baize_engine.evaluation.lm_eval.run", seen.append)
    assert main([command, *arguments]) == 0
    assert seen == [arguments]


def test_what_cannot_be_served_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refusing(_: object) -> None:
        raise BaizeError("no such model")

    monkeypatch.setattr("baize_engine.evaluation.lm_eval.run", refusing)
    assert main(["lm_eval", "--tasks", "a"]) == 1
    assert capsys.readouterr().err == "baize: no such model\n"
