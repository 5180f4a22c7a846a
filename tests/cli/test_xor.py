"""`baize xor` as its users type it: paths without names, and a result that nobody named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from published_xor import files, publish_by_file, publish_by_key

from baize_engine import verify
from baize_engine.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """llama30b_hf, oasst-xor and its result, tuned; belle-enc with the key in meta."""
    monkeypatch.chdir(tmp_path)
    for folder, number in (("llama30b_hf", 1), ("tuned", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(f'{{"n": {number}}}')
        (tmp_path / folder / "data").write_bytes(bytes([number]) * 1000)
    publish_by_file(tmp_path / "tuned", tmp_path / "llama30b_hf", tmp_path / "oasst-xor/oasst-xor")
    (tmp_path / "oasst-xor/xor_codec.py").write_text("import gzip")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/consolidated.00.pth").write_bytes(b"PK\3\4" * 9)
    publish_by_key(tmp_path / "tuned", b"PK\3\4" * 9, tmp_path / "belle-enc")
    return tmp_path


def is_tuned(out: Path) -> bool:
    found = files(out)
    return found.pop("baize_manifest.json", None) is not None and found == files(out.parent / "tuned")


@pytest.mark.parametrize("more", [[], ["--compress"], ["--decode"], ["--resume"]], ids=" ".join)
@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_paths_in_the_order_of_xor_codec(here: Path, more: list[str], there: bool) -> None:
    if there:
        (here / "oasst").mkdir()
    assert main(["xor", "oasst/", "oasst-xor/oasst-xor/", "llama30b_hf/", "--quiet", *more]) == 0
    assert is_tuned(here / "oasst")


def test_an_earlier_result_is_the_first_path(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["xor", "oasst", "belle-enc", "meta/consolidated.00.pth", "--quiet"]
    assert main(command) == 0
    assert main([*command, "--resume"]) == 0
    assert "an earlier run finished it" in capsys.readouterr().out
    assert main(command) == 1
    assert "it holds this very result" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "belle-enc meta/consolidated.00.pth out",  # decrypt.py's order
        "llama30b_hf oasst-xor out",  # recover's
        "llama30b_hf oasst-xor tuned",
        "out lab/x-xor llama30b_hf",  # a hub id may be any of them
        "oasst-xor llama30b_hf",
        "--path_raw llama30b_hf oasst-xor",
        "out oasst-xor llama30b_hf --path_tuned out",
    ],
)
def test_other_orders_are_refused_with_the_named_form(
    here: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(["xor", *line.split()])
    assert stop.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "wanted baize xor --path_raw BASE --path_payload PAYLOAD --path_tuned OUT" in told
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("payload", "base", "out"),
    [("oasst-xor", "llama30b_hf", "oasst-recovered"), ("belle-enc/", "meta", "belle-recovered")],
)
def test_a_result_beside_its_payload(
    here: Path, payload: str, base: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["xor", "--path_raw", base, "--path_payload", payload, "--quiet"]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        f"no --path_tuned was given; the result goes to {out}",
        f"2 files in {out}",
    ]
    assert is_tuned(here / out)
    assert verify(here / out).ok
    shutil.copy(here / "tuned/data", here / out / "more")
    assert main(command) == 1  # what is there is not overwritten
    assert (here / out / "more").exists()
