"""Flags that are made from dataclasses' fields, and the options that commands share."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import pytest
from commands import generate

from baize_engine import SamplingParams
from baize_engine.cli import main
from baize_engine.cli.options import field_flags, field_values, sampling_options, sampling_params


@dataclass
class Settings:
    count: int = field(default=3, metadata={"metavar": "N", "help": "how many"})
    share: float | None = field(default=None, metadata={"help": "how much"})
    name: str = field(default="a", metadata={"help": "which"})
    kind: Literal["a", "b"] = field(default="b", metadata={"choices": ("a", "b"), "help": "what"})
    other_name: int = field(default=1, metadata={"flag": "--short", "help": "by another name"})
    on: bool = field(default=False, metadata={"help": "whether"})
    inner: int = 7


def parser_of(**options: object) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    field_flags(parser, Settings, **options)  # type: ignore[arg-type]
    return parser


def test_defaults_are_the_fields() -> None:
    values = field_values(parser_of().parse_args([]), Settings)
    assert values == {"count": 3, "share": None, "name": "a", "kind": "b", "other_name": 1, "on": False}


def test_flags_have_the_fields_types() -> None:
    given = ["--count", "5", "--share", "0.5", "--name", "7", "--kind", "a", "--short", "2", "--on"]
    values = field_values(parser_of().parse_args(given), Settings)
    assert values == {"count": 5, "share": 0.5, "name": "7", "kind": "a", "other_name": 2, "on": True}
    assert not parser_of().parse_args(["--on", "--noon"]).on
    for wrong in (["--count", "a"], ["--kind", "c"], ["--inner", "1"]):
        with pytest.raises(SystemExit):
            parser_of().parse_args(wrong)


def test_help_texts_tell_defaults() -> None:
    shown = " ".join(parser_of(changes={"count": {"default": 9}, "name": {"default": None}}).format_help().split())
    assert "--count N how many (default: 9)" in shown
    assert "--name NAME which (default: a)" in shown  # None only tells that the flag was not given
    assert "--share SHARE how much --name" in shown
    assert shown.endswith("--on whether")


def test_fields_can_be_left_out() -> None:
    values = field_values(parser_of(without=("count", "name")).parse_args([]), Settings)
    assert values.keys() == {"share", "kind", "other_name", "on"}


def test_a_dataclass_can_be_made_of_the_defaults_of_every_sampling_flag() -> None:
    parser = argparse.ArgumentParser()
    sampling_options(parser)
    assert sampling_params(parser.parse_args([])) == SamplingParams(max_new_tokens=256)


@pytest.mark.parametrize(("command", "left_out"), [("generate", []), ("chat", ["n", "logprobs"])])
def test_every_field_of_the_parameters_has_its_flag_and_help(
    command: str, left_out: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert [each.name for each in fields(SamplingParams) if f"--{each.name} " not in shown] == left_out
    assert all((each.metadata["help"] in shown) == (each.name not in left_out) for each in fields(SamplingParams))


def test_stop_strings_as_they_stand_and_with_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    sampling_options(parser)
    given = ["--stop", r"\n", "--stop_escaped", r"\n\n", "--stop_escaped", r"a\tb\\n\u00e9"]
    assert sampling_params(parser.parse_args(given)).stop == (r"\n", "\n\n", "a\tb\\né")
    for wrong in (r"\x", "a\\", r"\u12", r"\ud800"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--stop_escaped", wrong])
        assert r"wanted \n, \t, \r, \\ or \uXXXX" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stop", "hinted"),
    [(r"\n", r"\n"), (r"a\t.", r"\t"), (r"\newline", None), ("\n", None), (r"\\", None), ("n", None)],
)
def test_a_stop_that_was_probably_meant_for_a_line_break_gets_a_hint(
    folder: Path, capsys: pytest.CaptureFixture[str], stop: str, hinted: str | None
) -> None:
    assert generate(folder, "--prompt", "the cat", "--max_new_tokens", 2, "--stop", stop) == 0
    err = capsys.readouterr().err
    assert err.count("--stop_escaped") == (hinted is not None)
    assert hinted is None or f"has {hinted} as two characters" in err
