"""Squared errors of matrices, and of gguf's formats."""

from __future__ import annotations

import matrix_errors
import pytest
import torch
from models import random_model
from shapes import PRESETS

from baize_engine.model import names


def test_errors_are_relative_and_name_the_worst() -> None:
    exact = {"near": torch.full((2, 2), 2.0), "far": torch.tensor([[1.0, -1.0]])}
    found = matrix_errors.squared_errors(exact, {"near": torch.full((2, 2), 2.5), "far": torch.tensor([[1.0, 0.0]])})
    assert found == {"squared_error": (4 * 0.25 + 1) / (16 + 2), "of_the_worst": 0.5, "worst_matrix": "far"}


@pytest.mark.parametrize("kind", ["float16", "int4"])
def test_the_matrices_are_those_that_are_published(kind: str) -> None:
    model = random_model(PRESETS["tiny"], kind, "cpu")
    found, shapes = matrix_errors.matrices(model), names.shapes(model.config)
    wanted = {name: shape for name, shape in shapes.items() if len(shape) == 2 and name != names.EMBED}
    assert {name: tuple(matrix.shape) for name, matrix in found.items()} == wanted


def test_what_gguf_makes_of_a_matrix() -> None:
    """Blocks of 32, each with the scale that maps its extreme to -8; 172 columns are no whole number of them."""
    pytest.importorskip("gguf")
    exact = {"w": torch.randn(3, 172, generator=torch.Generator().manual_seed(1))}
    found = matrix_errors.through_gguf(exact, "Q4_0")
    assert found is not None
    assert found["w"].shape == (3, 172)
    assert 0.004 < matrix_errors.squared_errors(exact, found)["squared_error"] < 0.02
    assert matrix_errors.through_gguf(exact, "Q4_K") is None
