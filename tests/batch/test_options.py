"""BatchOptions: what is refused by name, and what a user sees of each field."""

from __future__ import annotations

import numpy as np
import pytest

from baize_engine.batch.options import BatchOptions
from baize_engine.cli import main
from baize_engine.errors import RequestError


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"extra_columns": "ignore"}, "extra_columns is 'ignore', wanted error, keep, drop"),
        ({"extra_columns": None}, "extra_columns is None, wanted error, keep, drop"),
        ({"window": 0}, "window is 0, wanted an integer of at least 1"),
        ({"window": 1.5}, "window is 1.5, wanted an integer"),
    ],
)
def test_a_bad_value_is_refused_by_name(given: dict, wanted: str) -> None:
    with pytest.raises(RequestError) as refused:
        BatchOptions(**given)
    assert str(refused.value).startswith(wanted)


def test_a_window_may_be_numpys() -> None:
    assert type(BatchOptions(window=np.int64(3)).window) is int  # type: ignore[arg-type]


def test_the_help_tells_flags_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--extra_columns {error,keep,drop}" in shown
    assert "ignores them (default: error)" in shown
    assert "(default: 1024)" in shown
