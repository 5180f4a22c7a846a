"""Command lines as they stand in people's notes and in other projects' READMEs: each does what the plain one does."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from commands import baize

from baize_engine import verify
from baize_engine.checkpoint.manifest import read_manifest
from baize_engine.cli import main
from baize_engine.cli.options import flag
from baize_engine.cli.spelling import CommandParser

# Where a line stood, and the line: what comes before the options is the script's, and is `baize recover` or `make_diff` here.
RECOVER = [
    ("stanford_alpaca, README", "weight_diff.py recover --path_raw BASE --path_diff DIFF --path_tuned OUT"),
    ("open-instruct, README", "scripts/weight_diff.py recover --path_raw BASE --path_tuned OUT --path_diff DIFF"),
    ("UltraLM, recover.sh", "weight_diff.py recover --path_raw BASE --path_tuned OUT --path_diff DIFF --device cpu"),
    ("gisting", "-m src.weight_diff recover --path_raw BASE --path_diff DIFF --path_tuned OUT --test_inference False"),
    (
        "landmark",
        "weight_diff.py recover --path_raw BASE --path_diff DIFF --path_tuned OUT --device cpu --test_inference False",
    ),
    ("KnowLM, fp16", "tools/weight_diff.py recover --path_raw BASE --path_diff DIFF --path_tuned OUT --is_fp16 True"),
    ("fire, =", "weight_diff.py recover --path_raw=BASE --path_diff=DIFF --path_tuned=OUT --test_inference=False"),
    ("fire, no", "weight_diff.py recover --path_raw BASE --path_diff DIFF --path_tuned OUT --notest_inference"),
    ("fire, off", "weight_diff.py recover --notest_inference --nocheck_integrity_naively BASE DIFF OUT"),
    ("fire, 0", "weight_diff.py recover --path-raw BASE --path-diff DIFF --path-tuned OUT --check-integrity-naively 0"),
    ("fire, one dash", "weight_diff.py recover -path_raw BASE -path_diff DIFF -path_tuned OUT"),
    ("fire, positional", "weight_diff.py recover BASE DIFF OUT"),
    ("fire, mixed", "weight_diff.py recover BASE --path_tuned OUT --device cpu DIFF"),
    (
        "fire, check",
        "weight_diff.py recover --path_raw BASE --path_diff DIFF --path_tuned OUT --check_integrity_naively",
    ),
    ("a web page's dashes", "weight_diff.py recover –path_raw BASE —path_diff DIFF ––path_tuned OUT"),
    ("FastChat v0.1", "-m fastchat.model.apply_delta --base BASE --target OUT --delta DIFF"),
    (
        "FastChat, README",
        "-m fastchat.model.apply_delta --base-model-path BASE --target-model-path OUT --delta-path DIFF",
    ),
    ("FastChat, memory", "-m fastchat.model.apply_delta --base BASE --target OUT --delta DIFF --low-cpu-mem"),
    ("LLaVA", "-m llava.model.apply_delta --base BASE --target OUT --delta DIFF"),
    ("StableVicuna", "apply_delta.py --base-model-path='BASE' --delta-path='DIFF' --target-model-path='OUT'"),
    ("Wombat, Ziya", "apply_delta.py --base BASE --target OUT --delta DIFF"),
    ("Panda", "apply_delta.py --base_model BASE --target_model OUT --delta_model DIFF"),
    ("BayLing, LMFlow", "utils/apply_delta.py --base-model-path BASE --delta-path DIFF --target-model-path OUT"),
]
MAKE_DIFF = [
    ("stanford_alpaca", "weight_diff.py make_diff --path_raw BASE --path_tuned TUNED --path_diff OUT"),
    ("KnowLM", "diff.py make_diff --path_raw BASE --path_tuned TUNED --path_diff OUT --device=cpu"),
    ("fire, positional", "weight_diff.py make_diff BASE TUNED OUT"),
    ("FastChat", "-m fastchat.model.make_delta --base BASE --target TUNED --delta OUT"),
    ("PVIT", "-m pvit.model.make_delta --base-model-path BASE --target-model-path TUNED --delta-path OUT"),
]


def typed(line: str, command: str, **paths: Path) -> list[str]:
    """What a user types: the options of `line` behind `command`."""
    words = shlex.split(line)
    script = next(number for number, word in enumerate(words) if "/" in word or "." in word)
    words = words[script + 1 :]
    if words[0] == command:
        words = words[1:]
    for name, path in paths.items():
        words = [word.replace(name, str(path)) for word in words]
    return [command, *words, "--quiet"]


@pytest.mark.parametrize("line", [line for _, line in RECOVER], ids=[where for where, _ in RECOVER])
def test_recover_as_documented(line: str, pair: tuple[Path, Path], tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(typed(line, "recover", BASE=pair[0], DIFF=pair[1], OUT=out)) == 0
    assert read_manifest(out).tensors == read_manifest(tuned).tensors
    assert verify(out).ok


@pytest.mark.parametrize("line", [line for _, line in MAKE_DIFF], ids=[where for where, _ in MAKE_DIFF])
def test_make_diff_as_documented(line: str, pair: tuple[Path, Path], tuned: Path, tmp_path: Path) -> None:
    plain, out = tmp_path / "plain", tmp_path / "out"
    assert main(["make_diff", "--path_raw", str(pair[0]), "--path_tuned", str(tuned), "--path_diff", str(plain)]) == 0
    assert main(typed(line, "make_diff", BASE=pair[0], TUNED=tuned, OUT=out)) == 0
    assert read_manifest(out).tensors == read_manifest(plain).tensors


@pytest.mark.parametrize(
    ("option", "told"),
    [("--low-cpu-mem", "memory is bounded"), ("--is_fp16", "float32"), ("--model_type gist", "files say")],
)
def test_needless_options_are_told_in_a_line(
    option: str, told: str, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recover", *option.split(), *map(str, pair), str(tmp_path / "out"), "--quiet"]) == 0
    err = capsys.readouterr().err
    assert err.startswith(f"baize: {option.split()[0]} is needless here: ")
    first, *rest = err.splitlines()
    assert told in first
    assert all(line.startswith("warning: ") for line in rest)  # of the model, which has no tokenizer


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
        "a b c: it is not plain which path is which, wanted baize xor --path_raw BASE --path_payload PAYLOAD",
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
