"""RecoveryOptions: what it refuses where it is made, and that functions and flags are made from its fields."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import tiny

from baize_engine import make_diff, recover
from baize_engine.cli import main
from baize_engine.cli.make_diff import make_diff_options
from baize_engine.cli.recover import recover_options
from baize_engine.cli.spelling import CommandParser
from baize_engine.errors import BackendError, BaizeError, MismatchError, RequestError
from baize_engine.recovery.options import RecoveryOptions

REFUSED: list[tuple[str, object, type[BaizeError], str]] = [
    ("dtype", "int8", MismatchError, "dtype 'int8' is not one of float32, float16, bfloat16"),
    ("device", "gpu", BackendError, "device 'gpu' is not known, wanted auto, cpu, cuda or cuda:N"),
    ("new_rows", "none", RequestError, "new_rows is 'none', wanted 'auto', 'mean' or 'zero'"),
    ("memory_mib", 64, RequestError, "memory_mib is 64, wanted a number of MiB of at least 65"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), REFUSED, ids=[each[0] for each in REFUSED])
def test_a_wrong_value_is_refused_before_any_file_is_read(
    tmp_path: Path, name: str, value: object, error: type[BaizeError], message: str
) -> None:
    with pytest.raises(error, match=message):
        RecoveryOptions(**{name: value})
    for function in (recover, make_diff):
        with pytest.raises(error, match=message):
            function(tmp_path / "absent", tmp_path / "absent", tmp_path / "out", **{name: value})


def test_options_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        RecoveryOptions().dtype = "float32"  # type: ignore[misc]


@pytest.mark.parametrize("function", [recover, make_diff])
def test_each_field_is_an_argument(function: object) -> None:
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    for field in fields(RecoveryOptions):
        if field.name not in ("operation", "dtype"):
            assert parameters[field.name].default == field.default, field.name
    assert parameters["dtype"].default == ("float32" if function is make_diff else "float16")


@pytest.mark.parametrize(("add_flags", "dtype"), [(recover_options, "float16"), (make_diff_options, "float32")])
def test_each_field_with_a_help_text_is_a_flag(add_flags: object, dtype: str) -> None:
    parser = CommandParser(prog="baize")
    add_flags(parser)  # type: ignore[operator]
    defaults: argparse.Namespace = parser.parse_args([])
    for field in fields(RecoveryOptions):
        if "help" in field.metadata:
            wanted = dtype if field.name == "dtype" else field.default
            assert getattr(defaults, field.name) == wanted, field.name
    assert parser.parse_args(["--memory", "100"]).memory_mib == 100


def test_flags_reach_the_run(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    paths = ["--path_raw", str(base), "--path_diff", str(diff), "--path_tuned", str(tmp_path / "out")]
    assert main(["recover", *paths, "--device", "cpu", "--dtype", "bfloat16", "--new_rows", "zero", "--quiet"]) == 0
    library = recover(base, diff, tmp_path / "same", "bfloat16", "cpu", new_rows="zero", progress=False)
    assert (tmp_path / "out/baize_manifest.json").read_bytes() == (tmp_path / "same/baize_manifest.json").read_bytes()
    assert library.manifest.new_rows == "zero"
