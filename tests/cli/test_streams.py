"""Every command with standard streams that are closed, or not UTF-8; warnings as lines."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import forked
import pytest
import tiny
from commands import MODULE, read, write

from baize_engine import Engine, SamplingParams
from baize_engine.cli import streams
from baize_engine.errors import BaizeWarning, RequestError

# letters of two bytes: ids of byte pieces, which the random model may well say
ACCENTS = ["--allowed_token_ids", ",".join(str(3 + byte) for byte in "é".encode()), "--max_new_tokens", "8"]


CLOSED = {"<&-": 0, ">&-": 1, "2>&-": 2}
Ended = tuple[int, bytes, str]  # exit code, standard output, stderr


def run(arguments: list[str], redirected: str = "", stdin: bytes = b"", **environment: str) -> Ended:
    """`baize` as a shell starts it."""
    line = 'exec "$@" ' + redirected
    done = subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, *MODULE, *arguments],
        input=stdin, capture_output=True, timeout=300, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr.decode()


def forked_run(arguments: list[str], redirected: str = "", stdin: bytes = b"") -> Ended:
    """The same in a process of the fork server."""
    done = forked.run([*MODULE, *arguments], stdin, closed=[CLOSED[each] for each in redirected.split()])
    return done.returncode, done.stdout, done.stderr.decode()


SEVERAL = """
import os, sys
from baize_engine.cli import main
words = sys.argv[1:]
while words:
    count = int(words.pop(0))
    line, words = words[:count], words[count:]
    code = main(line)
    sys.stdout.flush()
    for number in (1, 2):
        os.write(number, b"\\0%d\\0" % code)
"""


def run_several(lines: list[list[str]], stdin: bytes, **environment: str) -> list[Ended]:
    """Commands one after the other in one real process, whose start takes longer than they do."""
    words = [word for line in lines for word in (str(len(line)), *line)]
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, *words],
        input=stdin, capture_output=True, timeout=300, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    *out, last = done.stdout.split(b"\0")
    *err, end = done.stderr.decode().split("\0")
    assert (last, end) == (b"", "")
    return [(int(code), text, said) for text, code, said in zip(out[::2], out[1::2], err[::2], strict=True)]


@pytest.mark.parametrize(
    ("arguments", "closed", "code", "wanted"),
    [
        (["info"], ">&-", 1, "standard output is closed, and the facts would go there"),
        (["generate", "MODEL", "--prompt", "a"], ">&-", 1, "standard output is closed, and the text would go there"),
        (["chat", "MODEL"], ">&-", 1, "standard output is closed, and the answers would go there"),
        (["generate", "MODEL", "--input", "IN", "--output", "-"], ">&-", 1, "standard output is closed"),
        (["generate", "MODEL", "--prompt", "-"], "<&-", 1, "standard input is closed, and the prompt would come"),
        (["generate", "MODEL", "--input", "-", "--output", "-"], "<&-", 1, "closed, and the records would come"),
        (["chat", "MODEL"], "<&-", 1, "standard input is closed, and the messages would come"),
        (["info"], "<&-", 0, ""),
        (["generate", "MODEL", "--prompt", "a", "--max_new_tokens", "2"], "<&-", 0, ""),
        (["generate", "MODEL", "--input", "IN", "--output", "OUT"], "<&- >&-", 0, ""),
        (["info"], "<&- >&- 2>&-", 1, ""),
        (["chat", "MODEL"], "<&- 2>&-", 1, ""),
    ],
)
def test_a_closed_stream_is_one_line_where_it_is_needed(
    folder: Path,
    tmp_path: Path,
    arguments: list[str],
    closed: str,
    code: int,
    wanted: str,
) -> None:
    paths = {"MODEL": folder, "IN": write(tmp_path / "in.jsonl", [{"prompt": "a"}]), "OUT": tmp_path / "out.jsonl"}
    start = run if arguments == ["info"] else forked_run
    found, _, err = start([str(paths.get(each, each)) for each in arguments], closed)
    assert (found, "Traceback" in err) == (code, False)
    assert wanted in err
    assert err.count("\n") == bool(wanted) or "--input" in arguments
    if "OUT" in arguments:
        assert len(read(tmp_path / "out.jsonl")) == 1  # and not what was said of it


def test_what_is_told_goes_nowhere_where_stderr_is_closed(folder: Path) -> None:
    """print() takes a closed stderr for standard output."""
    chat = ["chat", str(folder), "--device", "cpu", "--max_new_tokens", "2"]
    code, whole, err = forked_run(chat, "", b"/nothing\nthe cat\n")
    assert (code, "not a command" in err) == (3, True)
    assert forked_run(chat, "2>&-", b"/nothing\nthe cat\n") == (3, whole, "")


@pytest.fixture(scope="module")
def accents(folder: Path) -> str:
    """What a stream of UTF-8 shows of ACCENTS."""
    line = ["generate", str(folder), "--device", "cpu", "--prompt", "the cât", *ACCENTS]
    good, text, err = forked_run(line)
    assert (good, err) == (0, "")
    assert not text.isascii()
    return text.decode()


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=str,
)
def test_what_the_encoding_cannot_show_is_replaced_and_told_once(
    folder: Path,
    tmp_path: Path,
    accents: str,
    environment: dict[str, str],
) -> None:
    out = tmp_path / "out.jsonl"
    path = write(tmp_path / "in.jsonl", [{"prompt": "the cât"}])
    few = [str(folder), "--device", "cpu", "--threads", "1", *ACCENTS]
    records = ["generate", *few, "--input", str(path), "--quiet", "--output"]
    lines = [["generate", *few, "--prompt", "the cât"], ["chat", *few], [*records, str(out)], [*records, "-"]]
    prompted, chatted, to_file, to_stream = run_several(lines, "the cât\nthe dög\n".encode(), **environment)
    code, shown, err = prompted
    assert (code, shown) == (0, accents.encode("ascii", "replace"))
    assert err.count("characters that it lacks are shown as ?") == err.count("\n") == 1
    assert chatted[0] == 0
    assert b"?" in chatted[1]
    assert chatted[2].count("\n") == 1
    assert to_file[0] == 0
    assert read(out)[0]["completions"][0]["text"] + "\n" == accents  # files are UTF-8
    assert to_stream[1] == out.read_bytes()  # and so are records on standard output


def test_records_from_standard_input_to_standard_output(folder: Path, tmp_path: Path) -> None:
    lines = [{"prompt": "the cat", "id": n, "meta": {"of": [n, None]}} for n in range(3)]
    path, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    line = ["generate", str(folder), "--device", "cpu", "--max_new_tokens", "3", "--quiet"]
    assert forked_run([*line, "--input", str(path), "--output", str(out)])[0] == 0
    assert [(each["id"], each["meta"], each["completions"][0]["seed"]) for each in read(out)] == [
        (n, {"of": [n, None]}, None) for n in range(3)
    ]
    code, text, err = forked_run([*line, "--input", "-", "--output", "-"], "", path.read_bytes())
    assert (code, text) == (0, out.read_bytes())
    assert err == "standard output: 3 records, 0 of them errors\n"
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(True)[:1]))
    code, text, err = forked_run([*line, "--input", "-", "--output", str(out), "--resume"], "", path.read_bytes())
    assert (code, out.read_bytes()) == (0, whole)  # records that come again are known again
    code, text, err = forked_run([*line, "--input", "-", "--output", "-", "--resume"], "", path.read_bytes())
    assert code == 2
    assert "--resume needs an --output that is a file" in err
    code, text, err = forked_run([*line, "--input", "-", "--output", "-"], "", b"\n")
    assert (code, err) == (1, "baize: standard input has no records, wanted one JSON object per line\n")


def test_a_warning_is_a_line(tmp_path: Path) -> None:
    state = tiny.state(tiny.config(), 0)
    state["lm_head.weight"][0, :3] = 1e6
    model = tiny.write_model(tmp_path / "m", tiny.config(torch_dtype="float32"), state)
    path = write(tmp_path / "in.jsonl", [{"token_ids": [1, 5], "max_new_tokens": 2, "banned_token_ids": [0]}])
    line = ["generate", str(model), "--input", str(path), "--output", "-", "--quiet", "--device", "cpu"]
    _, _, err = forked_run([*line, "--dtype", "float16"])
    assert err.splitlines()[0].startswith("warning: lm_head.weight: 3 finite value(s) left the range of float16")
    assert "warning" not in forked_run([*line, "--dtype", "bfloat16"])[2]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with streams.warnings_told():
            warnings.warn("another", UserWarning, stacklevel=1)
    assert [each.category for each in caught] in ([], [UserWarning])
    assert issubclass(BaizeWarning, UserWarning)


def test_text_of_another_encoding_on_the_command_line_is_read_as_utf_8(folder: Path) -> None:
    with Engine.from_pretrained(folder, device="cpu") as engine:
        (done,) = engine.generate("the é", SamplingParams(max_new_tokens=3))
    line = ["generate", str(folder), "--device", "cpu", "--max_new_tokens", "3", "--prompt"]
    _, text, _ = run([*line, "the é"], LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", PYTHONIOENCODING="utf-8")
    assert text.decode() == done.text + "\n"
    for option in ("--prompt", "--stop"):
        code, _, err = forked_run([*line[:-1], option, os.fsdecode(b"a\xed\xa0\x80")])  # half of a surrogate pair
        assert code == 2
        assert f"argument {option}: 'a\\udced\\udca0\\udc80' is not UTF-8" in err
    with pytest.raises(RequestError, match="valid Unicode, without half of a surrogate pair"):
        SamplingParams(stop="\ud800")
