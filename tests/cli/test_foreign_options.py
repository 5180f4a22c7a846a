"""Command lines and options of other projects' scripts: each does what the plain one does, or says why not."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from baize_engine import verify
from baize_engine.checkpoint.manifest import read_manifest
from baize_engine.cli import main

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
    assert err.startswith(f"baize: {option.split()[0]} is not needed here: ")
    first, *rest = err.splitlines()
    assert told in first
    assert all(line.startswith("warning: ") for line in rest)  # of the model, which has no tokenizer
