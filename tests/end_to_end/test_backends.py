"""Every type of weights on every backend of a CPU, Triton's interpreter among them: generated, scored, chatted with."""

from __future__ import annotations

from pathlib import Path

import pytest
from backend_answers import KINDS, answers, models
from interpreter import Interpreter

from baize_engine.backend import choose
from baize_engine.errors import BackendError

HERE = [row.name for row in choose.table("linear_add") if row.why_not("cpu") is None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def reference(folders: dict[str, Path]) -> dict[str, tuple[list[int], list[float], str]]:
    return {kind: answers(str(folders[kind]), "torch") for kind in KINDS}


def check(found: tuple[list[int], list[float], str], wanted: tuple[list[int], list[float], str], loose: float) -> None:
    assert found[0] == wanted[0]
    assert found[1] == pytest.approx(wanted[1], abs=loose)
    assert found[2] == wanted[2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", HERE)
def test_backend(folders: dict[str, Path], reference: dict, backend: str, kind: str) -> None:
    check(answers(str(folders[kind]), backend), reference[kind], 0.5 if kind == "int8" else 0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_triton_interpreted(triton: Interpreter, folders: dict[str, Path], reference: dict, kind: str) -> None:
    found, _ = triton.run("backend_answers", "answers", str(folders[kind]), "triton")
    check(found, reference[kind], 0.05)


@pytest.mark.parametrize(
    "backend", ["reference", "cpp", "nonsense", "TORCH", "triton", "linear_add=reference", "sum=torch"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_run_is_refused_in_one_sentence_when_the_model_is_loaded(
    folders: dict[str, Path], backend: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        BackendError, match=f"^BAIZE_BACKEND.*{backend.rpartition('=')[0] or backend}.*(wanted|which)"
    ) as told:
        answers(str(folders[kind]), backend)
    assert "\n" not in str(told.value)
