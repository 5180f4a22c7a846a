"""`xor`: published payloads of each form give the finetune's bytes; the command, `verify`, and memory."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import measured_recover
import pytest
from published_xor import files, md5_list, publish_by_file, publish_by_key, result, run

from baize_engine import Engine, SamplingParams
from baize_engine.cli import main


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_file_by_file(base: Path, tuned: Path, tmp_path: Path, packed: bool) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload", packed)
    done = run(base, payload, tmp_path / "out")
    assert result(tmp_path / "out") == files(tuned)
    assert done.manifest.files == {n: hashlib.sha256(c).hexdigest() for n, c in files(tuned).items()}
    assert "tokenizer.json" not in done.manifest.files
    fit, warned = done.told
    assert fit == "2 file(s) have the CRC-32 that torch.save wrote into them"
    assert warned.startswith("warning: 6 file(s), such as added_tokens.json, could not be compared with what")
    assert {path.name for path in base.iterdir()} == {*files(tuned), "tokenizer.json"} - {"added_tokens.json"}


def test_the_result_is_a_model(base: Path, tuned: Path, tmp_path: Path) -> None:
    run(base, publish_by_file(tuned, base, tmp_path / "payload"), tmp_path / "out")
    (tmp_path / "out/tokenizer.model").unlink()
    with Engine.from_pretrained(str(tmp_path / "out"), device="cpu") as engine:
        (found,) = engine.generate([[1, 5]], SamplingParams(max_new_tokens=4, ignore_eos=True))
    assert len(found.token_ids) == 4


@pytest.mark.parametrize("header", [True, False], ids=["belle", "techgpt"])
@pytest.mark.parametrize("path_raw", ["meta", "meta/consolidated.00.pth"])
def test_with_a_key(tuned: Path, key: Path, tmp_path: Path, header: bool, path_raw: str) -> None:
    payload = publish_by_key(tuned, (key / "consolidated.00.pth").read_bytes(), tmp_path / "payload", header)
    (payload / "README.md").write_text("# the card")
    done = run(tmp_path / path_raw, payload, tmp_path / "out")
    assert result(tmp_path / "out") == files(tuned)
    assert ("8 file(s) have the SHA-256 that the payload says" in done.told) == header
    assert any("warning" in line for line in done.told) != header
    assert "left out, as no part of the payload: README.md" in done.told


def test_the_command_and_verify(base: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_by_file(tuned, base, tmp_path / "payload")
    out = tmp_path / "out"
    (tmp_path / "card").write_text(md5_list(base) + md5_list(tuned))
    command = ["xor", "--path-raw", str(base), "--path_payload", str(tmp_path / "payload"), "--path_tuned", str(out)]
    assert main([*command, "--expect_md5", str(tmp_path / "card"), "--quiet"]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        f"8 files in {out}",
        "8 of 8 file(s) of the result, and 8 of those they were made of, are as card says",
    ]
    assert told.err == ""
    assert main(["verify", str(out)]) == 0
    assert "8 files, 0.000 GB: as written" in capsys.readouterr().out
    assert main(command) == 1
    assert "it holds this very result, finished and unchanged" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0  # it is finished
    assert "an earlier run finished it: every byte is as it was written" in capsys.readouterr().out
    (out / "tokenizer_config.json").write_bytes(b"{}")
    (out / "added_tokens.json").unlink()
    assert main(["verify", str(out)]) == 1
    told = capsys.readouterr()
    assert "tokenizer_config.json is not the file that was written" in told.out
    assert "added_tokens.json is missing" in told.out
    assert main([*command, "--resume"]) == 1
    assert "a finished result that is not as it was written" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("form", ["plain", "key"])
def test_memory_does_not_grow_with_the_files(tmp_path: Path, form: str) -> None:
    """Two files of 1.5 GB at a time, of holes; the result stays sparse."""
    for folder in ("base", "payload"):
        (tmp_path / folder).mkdir()
    base_names = ["a", "b"] if form == "plain" else ["consolidated.00.pth"]
    names = ["a", "b"] if form == "plain" else [f"{n}.{hashlib.sha256().hexdigest()}.enc" for n in "ab"]
    for path in [*(tmp_path / "base" / n for n in base_names), *(tmp_path / "payload" / n for n in names)]:
        path.touch()
        os.truncate(path, 1_500_000_001)
    command = ["xor", "--path_raw", "base", "--path_payload", "payload", "--path_tuned", "out"]
    done = subprocess.run(
        [sys.executable, measured_recover.__file__, *command], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "baize_manifest.json"]
    assert int(done.stdout.split()[-1]) >> 20 <= 128
