"""As tests/recovery/test_interrupted.py, for `xor`: with --resume, finished files stay whatever ends a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from failing_journal import KEPT, failing_after
from published_xor import EXTRA, publish_by_file, result

from baize_engine import xor
from baize_engine.cli import main
from baize_engine.errors import BaizeWarning
from baize_engine.recovery.journal import JOURNAL_NAME


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base, a finetune and its payload."""
    cfg = tiny.config()
    base = tiny.write_model(tmp_path / "base", cfg, tiny.state(cfg, 0), "bin", shards=2)
    tuned = tiny.write_model(tmp_path / "tuned", cfg, tiny.state(cfg, 1), "bin", shards=2)
    for folder in (base, tuned):
        for name, content in EXTRA.items():
            (folder / name).write_bytes(content)
    return base, tuned, publish_by_file(tuned, base, tmp_path / "payload")


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=lambda error: error.__name__)
def test_xor(
    published: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: type[BaseException],
    resume: bool,
) -> None:
    base, tuned, payload = published
    out, total = tmp_path / "new" / "out", len(list(payload.iterdir()))
    words = ["--path_raw", base, "--path_payload", payload, "--path_tuned", out, "--quiet", *["--resume"] * resume]
    with monkeypatch.context() as patch:
        failing_after(3, patch, error)
        if error is KeyboardInterrupt:
            assert main(["xor", *map(str, words)]) == 130
        else:
            with pytest.raises(error):
                main(["xor", *map(str, words)])
    err = capsys.readouterr().err
    assert out.exists() == resume
    assert (f"{out} {KEPT.format(3, total, 'files')}" in err) == resume
    if error is KeyboardInterrupt:
        assert ("the same command continues" in err) == resume
    assert xor(base, payload, out, resume=True, progress=False).resumed == 3 * resume
    assert result(out) == {path.name: path.read_bytes() for path in tuned.iterdir()}


def test_files_of_xor_whose_bytes_were_lost_do_not_count(
    published: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _, payload = published
    out, total = tmp_path / "out", len(list(payload.iterdir()))
    for parts in (3, 2):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError):
            failing_after(parts, patch, RuntimeError)
            with pytest.warns(BaizeWarning, match=KEPT.format(parts, total, "files")):
                xor(base, payload, out, resume=True, progress=False)
        for partial in out.glob("*.partial"):
            if partial.name != JOURNAL_NAME:
                partial.write_bytes(bytes(partial.stat().st_size // 2))
    failing_after(0, monkeypatch, RuntimeError)
    with pytest.raises(RuntimeError):
        xor(base, payload, out, resume=True, progress=False)
    assert not any(out.iterdir())
