"""Every way to spell a flag, a command and its paths; and what a wrong one is told."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from commands import baize

from baize_engine.cli import main
from baize_engine.cli.options import flag
from baize_engine.cli.spelling import CommandParser

WRONG = [
    ("recover a b --hub-repo-id x/y", "no option --hub-repo-id"),
    ("make_diff a b --hub-repo-id x/y", "--hub-repo-id is not supported: nothing is uploaded"),
    ("recover a b --cache_dir /tmp", "HF_HOME"),
    ("recover --llama-7b-hf-dir a --alpaca-farm-model-name sft10k", "tatsu-lab/alpaca-farm-NAME-wdiff"),
    ("recover --path_rav a", "did you mean --path_raw?"),
    ("recover --path-tune a", "did you mean --path_tuned?"),
    ("recover --delta-pth a", "did you mean --delta_path?"),
    ("generate m --max-tokens 5", "did you mean --max_new_tokens?"),
    ("recover a b --zzz", "baize recover -h"),
    ("recover a b -hq", "there is no option -hq; baize recover -h"),
    ("recover a b --é", "there is no option --é"),
    ("recover a b c d", "d: one path too many"),
    ("recover a", "required: --path_diff"),
    (
        "recover a b c --notest_inference False",
        "--notest_inference False: wanted --notest_inference alone, or --test_inference",
    ),
    ("recover a b c --no-quiet 1", "--noquiet 1: wanted --noquiet alone, or --quiet 1"),
    ("xor --path_raw a", "required: --path_payload"),
    ("xor", "required: --path_raw, --path_payload"),
    (
        "xor a b c",
        "a b c: it is not clear which path is which, wanted baize xor --path_raw BASE --path_payload PAYLOAD",
    ),
    ("xor a b", "wanted baize xor --path_raw BASE"),
    ("xor --path_tuned o a b", "wanted baize xor --path_raw BASE"),
    ("make_diff --base a", "required: --path_tuned"),
    ("recover a b --test_inference=perhaps", "--test_inference is 'perhaps', wanted True or False"),
    ("recover --path_raw --path_diff b --path_tuned c", "--path_raw: expected one argument"),
    ("recover a b --path_tuned=", "--path_tuned: the path is empty"),
    ("recover a b ' '", "the path is empty"),
    ("recover '' b", "the path is empty"),
    ("verify ''", "OUT: the path is empty"),
    ("quantize --path '' --path_quantized b", "the path is empty"),
    ("generate '' --prompt x", "the path is empty"),
    ("generate m --input ''", "--input: the path is empty"),
    ("info ''", "the path is empty"),
    ("demo --out ''", "--out: the path is empty"),
    ("recovr a b", "did you mean baize recover?"),
    ("fastchat.model.apply_delta --base a", "did you mean baize recover?"),
    ("make-delta --base a", "did you mean baize make_diff?"),
    ("weight_diff.py recover", "did you mean baize recover, or baize make_diff?"),
    ("dance", "there is no command dance; baize -h"),
    ("--path_raw a", "COMMAND"),
]


@pytest.mark.parametrize(("line", "told"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_usage_says_what_to_do(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(line))
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "usage: baize" in err
    assert told in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 2, "commands:"),
        (["help"], 0, "commands:"),
        (["help", "recover"], 0, "usage: baize recover"),
        (["recover", "help"], 0, "usage: baize recover"),
        (["recover", "-h"], 0, "--target-model-path"),
        (["-V"], 0, "baize_engine "),
        (["--version"], 0, "baize_engine "),
    ],
)
def test_help_in_every_form(arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == code
    captured = capsys.readouterr()
    assert told in (captured.err if code else captured.out)
    assert "--noquiet" not in captured.out  # the other spellings are not listed one by one


def test_the_module_is_the_command(pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = baize("recover", "--base", pair[0], "--delta", pair[1], "--quiet", cwd=tmp_path)
    assert done.returncode == 0
    assert all(line.startswith("warning: ") for line in done.stderr.splitlines())
    assert done.stdout.startswith("no --path_tuned was given; the result goes to ")


def test_a_home_folder_in_every_option(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name, folder in zip(("base", "diff"), pair, strict=True):
        (home / name).symlink_to(folder)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    assert main(["recover", "--path_raw=~/base", "--path_diff", "~/diff", "--path_tuned=~/out", "--quiet"]) == 0
    assert main(["verify", "~/out", "--expect_manifest=~/out"]) == 0
    assert main(["quantize", "--path", "~/out", "--path_quantized=~/int8"]) == 0
    assert main(["info", "~/out"]) == 0
    assert main(["make_diff", "~/base", "~/out", "~/again", "--quiet"]) == 0
    for model in (
        ["~/out"],
        ["--path_raw=~/base", "--path_diff=~/diff"],
    ):  # no tokenizer there: found, and refused by name
        assert main(["generate", *model, "--prompt", "x"]) == 1
        assert "tokenizer.model" in capsys.readouterr().err
    (home / "in.jsonl").write_text('{"token_ids": [1, 5]}\n')
    with pytest.raises(SystemExit):
        main(["generate", "~/out", "--input=~/in.jsonl", "--window", "0", "--output", "~/o.jsonl"])
    assert {path.name for path in home.iterdir()} >= {"out", "int8", "again"}
    assert not list(tmp_path.glob("~*"))


SPELLINGS = [
    ([], (None, None, [])),
    (["--some_flag"], (True, None, [])),
    (["--some-flag", "True"], (True, None, [])),
    (["--some_flag=true"], (True, None, [])),
    (["-some-flag", "1"], (True, None, [])),
    (["--some_flag", "False"], (False, None, [])),
    (["--some_flag=0"], (False, None, [])),
    (["--some-flag", "no"], (False, None, [])),
    (["--nosome_flag"], (False, None, [])),
    (["--no-some-flag"], (False, None, [])),
    (["--nosome_flag=False"], (True, None, [])),
    (["--some_flag", "--nosome_flag"], (False, None, [])),
    (["--some_flag", "a", "b"], (True, None, ["a", "b"])),
    (["a", "--some_flag", "b", "--a_value", "c", "d"], (True, "c", ["a", "b", "d"])),
    (["a", "--a-value=c=d", "b"], (None, "c=d", ["a", "b"])),
    (["--a_value", "True", "True"], (None, "True", ["True"])),
    (["--a_value", "-1"], (None, "-1", [])),
    (["--a_value", "-"], (None, "-", [])),
    (["--a_value", "--some_flag or not"], (None, "--some_flag or not", [])),
    (["--a_value="], (None, "", [])),
    (["x", "--", "--some_flag", "y"], (None, None, ["x", "--some_flag", "y"])),
    (["--some_flag", "--", "True"], (True, None, ["True"])),
    (["--some_flag", "0", "d97"], (True, None, ["0", "d97"])),  # a folder here is called so, and another yes
    (["d97", "--some_flag", "yes"], (True, None, ["d97", "yes"])),
    (["--nosome_flag", "0", "d97"], (False, None, ["0", "d97"])),
    (["--some_flag=0", "0"], (False, None, ["0"])),
    (["--some_flag", "False"], (False, None, [])),
]


@pytest.mark.parametrize(("arguments", "wanted"), SPELLINGS, ids=[" ".join(given) for given, _ in SPELLINGS])
def test_spellings(
    arguments: list[str],
    wanted: tuple[bool | None, str | None, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("0", "yes", "False"):
        (tmp_path / name).mkdir()
    parser = CommandParser(prog="x", allow_abbrev=False)
    flag(parser, "--some_flag", action="store_true", default=None)
    flag(parser, "--a_value")
    parser.add_argument("rest", nargs="*")
    found = parser.parse_args(arguments)
    assert (found.some_flag, found.a_value, found.rest) == wanted


def test_a_missing_value_is_not_taken_from_the_positional_ones(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["generate", str(pair[0]), "--prompt"], ["generate", str(pair[0]), "--prompt", "--resume"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "--prompt: expected one argument" in capsys.readouterr().err
    assert main(["generate", "--ignore-eos", str(pair[0]), "--prompt", "True", "--temperature", "-1"]) == 1
    assert "temperature" in capsys.readouterr().err
