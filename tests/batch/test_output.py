"""The output that only grows: whole lines, taken up after a kill at any byte, and never another run's."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path

import pytest

from baize_engine.batch.output import AnswerFile, AnswerStream, head
from baize_engine.errors import OutputError

CONTENTS = [b'{"prompt": "a"}', b'{"prompt": "b"}', b'{"prompt": "c"}']


def heads(contents: list[bytes] = CONTENTS, run: str = "run") -> list[str]:
    return [head(index, content, run) for index, content in enumerate(contents)]


def line(index: int, **more: object) -> tuple[str, dict]:
    return heads()[index], {"completions": [{"text": f"é{index}"}], **more}


def write(path: Path, count: int) -> bytes:
    with AnswerFile(path, heads(), resume=False) as answers:
        for index in range(count):
            answers.append(*line(index))
    return path.read_bytes()


def test_lines_are_json_in_utf8_and_name_their_record(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with AnswerFile(path, heads(), resume=False) as answers:
        answers.append(*line(0, id="x"))
        answers.append(*line(1))
        answers.append(heads()[2], {"error": "half \ud83d of a pair"})
        assert (answers.done, answers.failed, answers.torn) == (3, 1, False)
    assert "é0" in path.read_text()
    found = [json.loads(text) for text in path.read_text().splitlines()]
    begins = [f'{{"index": {each["index"]}, "input": "{each["input"]}", ' for each in found]
    assert (begins, [each["index"] for each in found]) == (heads(), [0, 1, 2])
    assert len({each["input"] for each in found}) == 3
    assert found[0]["id"] == "x"
    assert found[2]["error"] == "half \ud83d of a pair"


def test_an_output_that_exists_is_refused_unless_it_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    before = write(path, 2)
    with pytest.raises(OutputError, match=r"out\.jsonl exists: use --resume to continue it"):
        AnswerFile(path, heads(), resume=False)
    with AnswerFile(path, heads(), resume=True) as answers:
        assert (answers.done, answers.failed, answers.torn) == (2, 0, False)
        assert path.read_bytes() == before
        answers.append(*line(2))
    assert path.read_bytes().startswith(before)


@pytest.mark.parametrize("resume", [False, True])
def test_a_link_that_points_nowhere_is_called_so(tmp_path: Path, resume: bool) -> None:
    path = tmp_path / "out.jsonl"
    path.symlink_to(tmp_path / "gone" / "out.jsonl")
    with pytest.raises(OutputError, match=r"out\.jsonl is a link to .*gone/out\.jsonl, which is absent: remove it"):
        AnswerFile(path, heads(), resume)
    assert path.is_symlink()
    path.unlink()
    path.symlink_to(tmp_path / "there.jsonl")
    (tmp_path / "there.jsonl").write_bytes(write(tmp_path / "other.jsonl", 2))
    with AnswerFile(path, heads(), True) as answers:
        answers.append(*line(2))
    assert (tmp_path / "there.jsonl").read_bytes().count(b"\n") == 3


def test_a_stream_gets_the_lines_of_a_file(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with AnswerStream(stream) as answers:
        for index in range(2):
            answers.append(*line(index))
        answers.append(heads()[2], {"error": "half \ud83d of a pair"})
        assert (answers.done, answers.failed, answers.torn) == (3, 1, False)
    with AnswerFile(tmp_path / "out.jsonl", heads(), False) as file:
        for index in range(2):
            file.append(*line(index))
        file.append(heads()[2], {"error": "half \ud83d of a pair"})
    assert stream.getvalue() == (tmp_path / "out.jsonl").read_bytes()


def test_a_run_killed_at_any_byte_is_taken_up_without_loss_or_repetition(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.jsonl", 3)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    path = tmp_path / "out.jsonl"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with AnswerFile(path, heads(), resume=True) as answers:
            assert answers.done == sum(end <= cut for end in ends)
            assert answers.torn == (cut not in (0, *ends))
            if answers.done < 3:
                for index in range(answers.done, 3):
                    answers.append(*line(index))
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("others", "run", "found"),
    [
        ([b'{"prompt": "other"}', *CONTENTS[1:]], "run", "line 1 is not the answer to record 0"),
        ([CONTENTS[0], b'{"prompt": "B"}', CONTENTS[2]], "run", "line 2 is not the answer to record 1"),
        (CONTENTS, "another model", "line 1 is not the answer to record 0"),
        (CONTENTS[:1], "run", r"line 2 is there, but the input has only 1 record\(s\)"),
    ],
)
def test_an_output_of_another_run_is_refused_and_left(
    tmp_path: Path, others: list[bytes], run: str, found: str
) -> None:
    path = tmp_path / "out.jsonl"
    before = write(path, 2)
    with pytest.raises(OutputError, match=found):
        AnswerFile(path, heads(others, run), resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"my notes", b"my notes\n", b"{}\n", b'{"index": 0}', b"\0\0\0\0", b"\n", b"\xff\n"]
)
def test_a_file_that_is_no_output_is_refused_and_left(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(OutputError, match="line 1 is not the answer to record 0"):
        AnswerFile(path, heads(), resume=True)
    assert path.read_bytes() == content


def test_a_line_that_was_spoilt_inside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    spoilt = write(path, 2).replace(b'"completions": [{', b'"completions": [}', 1)
    path.write_bytes(spoilt)
    with pytest.raises(OutputError, match="line 1 is not"):
        AnswerFile(path, heads(), resume=True)
    assert path.read_bytes() == spoilt


def test_a_longer_input_goes_on_where_the_shorter_one_ended(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with AnswerFile(path, heads(CONTENTS[:2]), resume=False) as answers:
        answers.append(*line(0))
        answers.append(*line(1))
    with AnswerFile(path, heads(), resume=True) as answers:
        assert answers.done == 2


def test_two_runs_cannot_write_one_output(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with AnswerFile(path, heads(), resume=False) as first:
        with pytest.raises(OutputError, match="another run is writing to it"):
            AnswerFile(path, heads(), resume=True)
        first.append(*line(0))
    assert path.read_bytes().count(b"\n") == 1


def test_a_run_that_made_no_line_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt), AnswerFile(path, heads(), resume=resume):
            raise KeyboardInterrupt
        assert not path.exists()
    path.touch()
    with AnswerFile(path, heads(), resume=True):
        pass
    assert path.exists()  # it was there before


@pytest.mark.parametrize(
    ("failure", "raised", "told"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            OutputError,
            r"out\.jsonl cannot be written \(No space left",
        ),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_failed_append_leaves_the_lines_before(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    raised: type[BaseException],
    told: str | None,
) -> None:
    path, write_all, calls = tmp_path / "out.jsonl", os.write, []

    def partly(fd: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(calls) == 2:
            raise failure
        return write_all(fd, data[: len(data) // 2])

    with AnswerFile(path, heads(), resume=False) as answers:
        answers.append(*line(0))
        before = path.read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", partly)
            with pytest.raises(raised, match=told):
                answers.append(*line(1))
        assert (path.read_bytes(), answers.done, len(calls)) == (before, 1, 2)
        answers.append(*line(1))
        answers.append(*line(2))
    with AnswerFile(path, heads(), resume=True) as answers:
        assert answers.done == 3


def test_a_line_that_was_whole_when_ctrl_c_came_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write_all = tmp_path / "out.jsonl", os.write

    def interrupted(fd: int, data: memoryview) -> int:
        write_all(fd, data)
        raise KeyboardInterrupt

    with AnswerFile(path, heads(), resume=False) as answers:
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                answers.append(*line(0))
        assert (answers.done, path.read_bytes().count(b"\n")) == (1, 1)
        answers.append(*line(1))
    with AnswerFile(path, heads(), resume=True) as answers:
        assert answers.done == 2


def test_lines_are_there_at_once_and_synced_every_second_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, now = tmp_path / "out.jsonl", [], [0.0]
    monkeypatch.setattr("baize_engine.batch.output.time.monotonic", lambda: now[0])
    with AnswerFile(path, heads(), resume=False) as answers:
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(path.read_bytes().count(b"\n")))
        for index, time in enumerate((0.5, 1.2, 2.0)):
            now[0] = time
            answers.append(*line(index))
            assert path.read_bytes().count(b"\n") == index + 1
        assert synced == [2]
    assert synced == [2, 3]


def test_an_output_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="pipe is not a regular file"):
        AnswerFile(tmp_path / "pipe", heads(), resume=True)


@pytest.mark.parametrize("shorter", [False, True], ids=["longer", "shorter"])
def test_a_file_that_somebody_else_changes_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shorter: bool
) -> None:
    path, write_all = tmp_path / "out.jsonl", os.write

    def changed(fd: int, data: memoryview) -> int:
        if shorter:
            os.truncate(path, 1)
        else:
            path.write_bytes(path.read_bytes() + b"notes")
        return write_all(fd, data)

    with AnswerFile(path, heads(), resume=False) as answers:
        answers.append(*line(0))
        before = path.read_bytes()
        end = 2 * len(before)
        found = 1 + len(before) if shorter else end + len(b"notes")
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", changed)
            with pytest.raises(
                OutputError, match=rf"out\.jsonl has {found} bytes after a line was written, wanted {end}"
            ):
                answers.append(*line(1))
        assert (answers.done, answers.failed) == (1, 0)
    assert path.read_bytes().startswith(before[:1])
    assert len(path.read_bytes()) <= len(before)
