"""With --resume, what is finished stays whatever ends a run, and the next one goes on from it; without, nothing stays."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import slow_baize
import tiny
from failing_journal import KEPT, failing_after
from grown_diffs import write_diffs

from baize_engine import make_diff, recover, verify
from baize_engine.checkpoint.output_file import OutputFile
from baize_engine.checkpoint.output_folder import OutputFolder
from baize_engine.errors import BaizeWarning, MismatchError, OutputError
from baize_engine.recovery.journal import JOURNAL_NAME

SIGNALS = [signal.SIGINT, signal.SIGTERM]


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
    _, err = child.communicate(timeout=300)
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


def test_neither_the_warning_nor_a_failing_close_hides_what_ended_the_run(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = OutputFile.close

    def failing(self: OutputFile) -> None:
        close(self)
        raise OutputError(5, f"{self.path} cannot be written")

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("error", ".* keeps ", BaizeWarning)
        failing_after(9, patch, ZeroDivisionError)
        patch.setattr(OutputFile, "close", failing)
        with pytest.raises(ZeroDivisionError):
            recover(*pair, tmp_path / "out", device="cpu", progress=False, resume=True)
    assert recover(*pair, tmp_path / "out", device="cpu", progress=False, resume=True).resumed == 9


def test_tensors_whose_bytes_were_lost_do_not_count(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for parts in (9, 4):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError):
            failing_after(parts, patch, RuntimeError)
            with pytest.warns(BaizeWarning, match=KEPT.format(parts, 57, "tensors")):
                recover(*pair, out, device="cpu", progress=False, resume=True)
        (partial,) = out.glob("*.safetensors.partial")
        partial.write_bytes(bytes(partial.stat().st_size))
    failing_after(0, monkeypatch, RuntimeError)
    with pytest.raises(RuntimeError):
        recover(*pair, out, device="cpu", progress=False, resume=True)
    assert not any(out.iterdir())


@pytest.mark.parametrize("resume", [True, False])
def test_one_result_is_whole_when_the_next_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, resume: bool
) -> None:
    base, _ = tiny.write_pair(tmp_path)
    diffs, outs = write_diffs(tmp_path, tiny.config()), [tmp_path / f"o{n}" for n in range(3)]
    place = OutputFolder.place

    def failing(self: OutputFolder, name: str, content: bytes) -> None:
        if self.folder == outs[1]:
            raise OutputError(28, f"{self.folder / name} cannot be written")
        place(self, name, content)

    with monkeypatch.context() as patch, pytest.raises(OutputError, match=r"o1/.* cannot be written"):
        patch.setattr(OutputFolder, "place", failing)
        recover(base, diffs, outs, device="cpu", progress=False, resume=resume)
    assert verify(outs[0]).ok
    assert not list(outs[0].glob("*.partial"))
    told = [str(one.message) for one in recwarn if "--resume" in str(one.message)]
    if not resume:
        assert not any(out.exists() for out in outs[1:])
        assert not told
        return
    assert [line.partition(" keeps ")[0] for line in told] == [str(outs[2]), str(outs[1])]
    again = recover(base, diffs, outs, device="cpu", progress=False, resume=True)
    assert [one.finished_before for one in again] == [True, False, False]
    assert all(one.resumed == len(one.manifest.tensors) for one in again)
    assert all(verify(out).ok for out in outs)


@pytest.mark.parametrize("resume", [True, False])
def test_ctrl_c_between_any_two_lines_in_which_a_result_becomes_whole(
    pair: tuple[Path, Path], tmp_path: Path, resume: bool
) -> None:
    def pressed_at(number: int) -> Callable[[FrameType, str, Any], Any]:
        left = number

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            if frame.f_code is not OutputFolder.keep.__code__:
                return None
            left -= event != "call"
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        return trace

    for number in itertools.count():
        out, before = tmp_path / f"new{number}" / "out", sys.gettrace()
        try:
            sys.settrace(pressed_at(number))
            recover(*pair, out, device="cpu", progress=False, resume=resume)
        except KeyboardInterrupt:
            assert resume or not out.exists() or verify(out).ok
            assert resume or not (out / JOURNAL_NAME).exists()
            again = recover(*pair, out, device="cpu", progress=False, resume=True)
            assert again.resumed == (57 if resume or again.finished_before else 0)
        else:
            break
        finally:
            sys.settrace(before)
    assert number > 3
