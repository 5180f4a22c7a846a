"""With --resume, what is finished stays whatever ends a run, and the next one goes on from it; without, nothing stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import slow_baize
import tiny
from grown_diffs import write_diffs
from published_xor import EXTRA, publish_by_file, result

from baize_engine import make_diff, recover, verify, xor
from baize_engine.cli import main
from baize_engine.errors import BaizeWarning, MismatchError
from baize_engine.recovery.journal import JOURNAL_NAME, Journal

SIGNALS = [signal.SIGINT, signal.SIGTERM]
KEPT = "keeps {} of {} {} that are finished: continue with --resume, or remove the folder"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    cfg = tiny.config(hidden_size=128, num_hidden_layers=6)
    return tiny.write_pair(tmp_path_factory.mktemp("pair"), cfg=cfg)


@pytest.fixture(scope="module")
def tuned(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recover(*pair, tmp_path_factory.mktemp("tuned") / "tuned", device="cpu", progress=False).folder


def noted(out: Path) -> int:
    return (out / JOURNAL_NAME).read_bytes().count(b'"name"')


def ended(sent: signal.Signals, many: int, *arguments: object) -> str:
    """What a command wrote to stderr that got a signal once it had noted so many tensors more."""
    child, told = slow_baize.start(0, *arguments, hold=(slow_baize.NOTED, many))
    slow_baize.wait_for(told, slow_baize.NOTED, many)
    child.send_signal(sent)
    _, err = child.communicate(timeout=60)
    os.close(told)
    assert child.returncode == (-sent if sent == signal.SIGKILL else 130), err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("command", ["recover", "make_diff"])
@pytest.mark.parametrize("sent", [*SIGNALS, signal.SIGKILL])
def test_a_run_with_resume_can_be_ended_again_and_again(
    pair: tuple[Path, Path], tuned: Path, tmp_path: Path, command: str, sent: signal.Signals
) -> None:
    base, diff = pair
    out = tmp_path / "new" / "out"
    other = diff if command == "recover" else tuned
    arguments = [command, base, other, out, "--device", "cpu", "--resume"]
    before = 0
    for _ in range(3):
        err = ended(sent, 6, *arguments)
        now = noted(out)
        assert now >= before + 6  # what the runs before had finished is still there
        before = now
        if sent != signal.SIGKILL:
            assert KEPT.format(now, 57, "tensors") in err
            assert err.endswith("baize: interrupted; the same command continues\n")
    assert not list(out.glob("*.safetensors"))
    make = recover if command == "recover" else make_diff
    last = make(base, other, out, device="cpu", progress=False, resume=True)
    assert last.resumed >= before - 1  # SIGKILL may have torn the last line
    assert last.manifest.tensors == make(base, other, tmp_path / "whole", device="cpu", progress=False).manifest.tensors
    assert verify(out).ok
    assert not list(out.glob("*.partial"))


@pytest.mark.parametrize("sent", SIGNALS)
def test_a_killed_run_resumed_and_interrupted_keeps_what_both_had_finished(
    pair: tuple[Path, Path], tmp_path: Path, sent: signal.Signals
) -> None:
    out = tmp_path / "out"
    ended(signal.SIGKILL, 10, "recover", *pair, out, "--device", "cpu")
    killed = noted(out)
    err = ended(sent, 5, "recover", *pair, out, "--device", "cpu", "--resume")
    assert noted(out) >= killed + 5
    assert "keeps" in err
    assert recover(*pair, out, device="cpu", progress=False, resume=True).resumed >= killed + 4


@pytest.mark.parametrize("sent", SIGNALS)
def test_without_resume_nothing_stays_and_the_message_names_resume(
    pair: tuple[Path, Path], tmp_path: Path, sent: signal.Signals
) -> None:
    err = ended(sent, 6, "recover", *pair, tmp_path / "new/out", "--device", "cpu")
    assert (
        "baize: interrupted; no half-written files were left (begun with --resume, the command would have kept" in err
    )
    assert "keeps" not in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("sent", SIGNALS)
def test_each_of_several_results_is_kept(tmp_path: Path, sent: signal.Signals) -> None:
    cfg = tiny.config(hidden_size=128, num_hidden_layers=6)
    base, _ = tiny.write_pair(tmp_path, cfg=cfg)
    diffs, outs = write_diffs(tmp_path, cfg), [tmp_path / f"o{n}" for n in range(3)]
    pairs = [word for d, o in zip(diffs, outs, strict=True) for word in ("--path_diff", d, "--path_tuned", o)]
    err = ended(sent, 24, "recover", "--path_raw", base, *pairs, "--device", "cpu", "--resume")
    counts = [noted(out) for out in outs]
    for out, count in zip(outs, counts, strict=True):
        assert f"{out} keeps {count} of " in err
    resumed = recover(base, diffs, outs, device="cpu", progress=False, resume=True)
    assert [one.resumed for one in resumed] == counts
    assert all(verify(out).ok for out in outs)


def failing_after(parts: int, monkeypatch: pytest.MonkeyPatch, error: Callable[[], BaseException]) -> None:
    """From now on, journals note so many parts and then raise."""
    add, count = Journal.add, 0

    def noting(self: Journal, name: str, record: object) -> None:
        nonlocal count
        if count >= parts:
            raise error()
        add(self, name, record)
        count += 1

    monkeypatch.setattr(Journal, "add", noting)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MismatchError], ids=lambda error: error.__name__)
def test_any_exception(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], resume: bool
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(error):
        failing_after(9, patch, error)
        if resume:
            with pytest.warns(BaizeWarning, match=KEPT.format(9, 57, "tensors")):
                recover(*pair, out, device="cpu", progress=False, resume=True)
        else:
            recover(*pair, out, device="cpu", progress=False)
    assert out.exists() == resume
    assert recover(*pair, out, device="cpu", progress=False, resume=True).resumed == 9 * resume


def test_where_nothing_is_finished_nothing_stays(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    failing_after(0, monkeypatch, RuntimeError)
    with pytest.raises(RuntimeError):
        recover(*pair, tmp_path / "new/out", device="cpu", progress=False, resume=True)
    assert not (tmp_path / "new").exists()
    assert not [one for one in recwarn if "keeps" in str(one.message)]


def test_a_sum_that_is_missed_costs_no_work(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(MismatchError, match="wanted 3"), pytest.warns(BaizeWarning, match="keeps 57 of 57 tensors"):
        recover(*pair, out, device="cpu", progress=False, resume=True, expect_sum=3.0)
    assert recover(*pair, out, device="cpu", progress=False, resume=True).resumed == 57


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
