"""`baize generate` as it is typed: standard input, files of prompts, kills and resumption, flags, refusals."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import slow_baize
from commands import forked_baize, generate, read, write

from baize_engine import Engine, SamplingParams

PROMPTS = [{"prompt": f"the cat sat on {i}", "id": i} for i in range(12)]


def test_a_file_is_answered_as_the_engine_answers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        *PROMPTS[:2],
        {"token_ids": [1, 5, 9], "temperature": 0, "max_new_tokens": 3, "n": 2},
        {"messages": [{"role": "user", "content": "who are you"}]},
    ]
    path, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    flags = ("--max_new_tokens", 6, "--temperature", 0.9, "--seed", 4, "--presence_penalty", 0.5, "--logprobs", 2)
    flags = (*flags, "--logit_bias", "20=1.5", "--banned_token_ids", "5,7", "--min_new_tokens", 2)
    assert generate(folder, "--input", path, "--output", out, *flags) == 0
    assert capsys.readouterr().out == f"{out}: 4 records, 0 of them errors\n"
    asked = {
        "max_new_tokens": 6, "temperature": 0.9, "seed": 4, "presence_penalty": 0.5, "logprobs": 2,
        "logit_bias": {20: 1.5}, "banned_token_ids": [5, 7], "min_new_tokens": 2,
    }  # fmt: skip
    with Engine.from_pretrained(folder, device="cpu") as engine:
        prompts = [lines[0]["prompt"], lines[1]["prompt"], [1, 5, 9], engine.chat_ids(lines[3]["messages"])]
        params = SamplingParams(**asked)
        other = SamplingParams(**{**asked, "temperature": 0, "max_new_tokens": 3, "n": 2})
        wanted = engine.generate(prompts, [params, params, other, params])
    made = [(line["index"], each) for line in read(out) for each in line["completions"]]
    assert len(made) == len(wanted) == 5
    for (index, mine), theirs in zip(made, wanted, strict=True):
        assert (index, mine["index"], mine["text"]) == (theirs.prompt_index, theirs.index, theirs.text)
        assert (mine["token_ids"], mine["seed"]) == (theirs.token_ids, 4)
        assert [len(entry["top"]) for entry in mine["logprobs"]] == [2] * len(theirs.token_ids)


def test_bad_records_are_lines_with_their_error_and_the_exit_code_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"prompt": "a"},
        {"promt": "b"},
        {"token_ids": [999]},
        {"prompt": "half \ud83d of a pair"},
        {"prompt": "c"},
    ]
    path = write(tmp_path / "in.jsonl", lines)
    out = tmp_path / "out.jsonl"
    assert generate(folder, "--input", path, "--output", out, "--max_new_tokens", 3) == 3
    assert ["error" in line for line in read(out)] == [False, True, True, True, False]
    assert "5 records, 3 of them errors" in capsys.readouterr().out
    before = out.read_bytes()
    assert generate(folder, "--input", path, "--output", out, "--max_new_tokens", 3, "--resume") == 3
    assert out.read_bytes() == before


def test_an_output_that_exists_or_is_of_other_settings_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(tmp_path / "in.jsonl", PROMPTS[:3]), tmp_path / "out.jsonl"
    assert generate(folder, "--input", path, "--output", out, "--max_new_tokens", 3) == 0
    before = out.read_bytes()
    for more, wanted in (
        (["--max_new_tokens", 3], "exists: use --resume to continue it"),
        (["--max_new_tokens", 4, "--resume"], "line 1 is not the answer to record 0"),
        (["--max_new_tokens", 3, "--quantize", "int8", "--resume"], "line 1 is not the answer to record 0"),
    ):
        assert generate(folder, "--input", path, "--output", out, *more) == 1
        assert wanted in capsys.readouterr().err
    write(path, [*PROMPTS[:2], PROMPTS[5]])
    assert generate(folder, "--input", path, "--output", out, "--max_new_tokens", 3, "--resume") == 1
    assert "line 3 is not the answer to record 2" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize("begun", [(), ("--speculate", "ngram", "--speculate-tokens", 4)], ids=["plain", "speculated"])
def test_an_output_begun_without_speculation_goes_on_with_it_and_the_other_way_round(
    begun: tuple, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, whole, out = write(tmp_path / "in.jsonl", PROMPTS[:4]), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    flags = (
        "--input",
        path,
        "--max_new_tokens",
        30,
        "--ignore_eos",
        "--temperature",
        0.3,
        "--seed",
        4,
        "--logprobs",
        1,
    )
    assert generate(folder, *flags, "--output", whole, *begun) == 0
    first, *_ = whole.read_bytes().splitlines(keepends=True)
    out.write_bytes(first)
    going_on = () if begun else ("--speculate", "ngram")
    capsys.readouterr()
    assert generate(folder, *flags, "--output", out, "--resume", *going_on) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert ("baize: speculation: " in capsys.readouterr().err) == bool(going_on)


@pytest.mark.usefixtures("free_host")
def test_speculation_changes_no_text_and_is_told_on_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for more in ((), ("--speculate", "ngram")):
        asked = ("--prompt", "the cat the cat the cat", "--max_new_tokens", 40, "--ignore_eos")
        assert generate(folder, *asked, *more) == 0
        out, err = capsys.readouterr()
        texts.append(out)
        told = r"baize: speculation: \d+% accepted, [\d.]+ tok/step, ~[\d.]+x \(estimated\)\n"
        assert re.fullmatch(told if more else "", err)
    assert texts[0] == texts[1] != "\n"


def command(folder: Path, path: Path, out: Path) -> list[str]:
    # one thread: two that wait for each other crawl on a machine that has other work
    few = ["--device", "cpu", "--threads", "1", "--window", "1", "--max_new_tokens", "60", "--ignore_eos"]
    return ["generate", str(folder), "--input", str(path), "--output", str(out), *few]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on_without_loss_or_repetition(folder: Path, tmp_path: Path, sent: signal.Signals) -> None:
    path, out = write(tmp_path / "in.jsonl", PROMPTS * 3), tmp_path / "out.jsonl"
    hold = slow_baize.WRITTEN, 2
    child, told = slow_baize.start(0, *command(folder, path, out), hold=hold)
    slow_baize.wait_for(told, *hold)
    os.kill(child.pid, sent)
    _, err = child.communicate(timeout=300)
    os.close(told)
    kept = out.read_bytes()
    done = kept.count(b"\n")
    assert 2 <= done < 36
    if sent == signal.SIGTERM:
        assert child.returncode == 130
        assert f"of 36 records are in {out}; --resume continues" in err
        assert "Traceback" not in err
    out.write_bytes(kept + b'{"index": ' + str(done).encode())  # a line that was torn in the middle
    again = forked_baize(*command(folder, path, out), "--resume")
    assert (again.returncode, again.stdout) == (0, f"{out}: 36 records, 0 of them errors\n")
    assert "an unfinished line at the end was removed" in again.stderr
    assert out.read_bytes().startswith(kept)
    lines = read(out)
    assert [line["index"] for line in lines] == list(range(36))
    assert [line["id"] for line in lines] == list(range(12)) * 3
    texts = [line["completions"][0]["text"] for line in lines]
    assert texts == texts[:12] * 3  # greedy: the same before the kill and after it


def test_records_that_vanish_while_they_are_answered_are_missed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{**line, "id": "x" * 100_000} for line in PROMPTS]  # longer than what is read at once
    path, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    usual = Engine.completions

    def shortens(engine: Engine, *arguments: object, **how: bool) -> object:
        write(path, lines[:2])
        return usual(engine, *arguments, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "completions", shortens)
    assert generate(folder, "--input", path, "--output", out, "--max_new_tokens", 3, "--window", 2) == 1
    assert f"{path} had 12 records, and 9 of them disappeared" in capsys.readouterr().err
    assert ["error" in line for line in read(out)] == [False, False, True]  # the third was cut


def test_a_prompt_comes_from_standard_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(prompt: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = generate(folder, "--prompt", prompt, "--max_new_tokens", 5)
        return code, *capsys.readouterr()

    text = "the cat\nsat é "
    piped = run("-", text.encode())
    assert piped == run(text)
    assert piped[0] == 0
    assert piped[1] != run("the cat")[1]
    code, out, err = run("-", b"the \xff cat")
    assert (code, out) == (1, "")
    assert "standard input is not UTF-8 at byte 4" in err


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "wanted --prompt TEXT, or --input FILE"),
        (["--prompt", "a", "--input", "b"], "wanted --prompt TEXT, or --input FILE"),
        (["--input", "b"], "--input needs --output FILE"),
        (["--prompt", "a", "--output", "b"], "--output applies to --input"),
        (["--prompt", "a", "--resume"], "--resume applies to --input"),
        (["--prompt", "a", "--logprobs", "0"], "--logprobs applies to --input"),
        (["--prompt", "a", "--window", "5"], "--window applies to --input"),
        (["--prompt", "a", "--extra_columns", "keep"], "--extra_columns applies to --input"),
        (["--input", "a", "--output", "b", "--window", "0"], "--window is 0, wanted at least 1"),
        (["--prompt", "a", "--banned_token_ids", "5;6"], "'5;6', wanted token ids with commas"),
        (["--prompt", "a", "--logit_bias", "5:6"], "'5:6', wanted a token id and a number"),
        (["--prompt", "a", "--logit_bias", "5=1", "--logit_bias", "5=2"], "--logit_bias names a token twice"),
        (["--prompt", "a", "--path_raw", "x"], "wanted either MODEL, or --path_raw and --path_diff"),
        (["--prompt", "a", "--shard", "1/2"], "--shard applies to --input"),
        (["--input", "-", "--output", "out", "--shard", "1/2"], "--shard needs an --input that is a file and an"),
        (["--input", "a", "--output", "-", "--shard", "1/2"], "--shard needs an --input that is a file and an"),
        (["--input", "a", "--output", "out", "--shard", "0/2"], "counted from 1, wanted 1/2 to 2/2"),
        (["--input", "a", "--output", "out", "--shard", "2"], "the shard is 2, wanted I/N, such as 3/8"),
        (["--input", "a", "--shard", "1/2"], "--input needs --output"),
    ],
)
def test_wrong_usage_is_told(
    folder: Path, arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        generate(folder, *arguments)
    assert stop.value.code == 2
    assert wanted in capsys.readouterr().err


def test_what_cannot_be_served_is_one_line_and_leaves_no_output(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(tmp_path / "in.jsonl", PROMPTS), tmp_path / "out.jsonl"
    empty, pipe = write(tmp_path / "empty.jsonl", []), tmp_path / "pipe"
    os.mkfifo(pipe)
    for arguments, wanted in (
        (["--input", path, "--temperature", "-1"], "SamplingParams.temperature is -1.0"),
        (["--input", empty], "empty.jsonl has no records"),
        (["--input", tmp_path / "missing"], "missing is absent"),
        (["--input", pipe], "pipe is a folder or device, wanted a file"),
        (["--input", path, "--max_model_len", 5000], "max_model_len is 5000"),
        (["--input", path, "--device", "cuda:01"], "device 'cuda:01' is not known, wanted auto, cpu, cuda or cuda:N"),
        (["--input", path, "--device", "gpu1"], "device 'gpu1' is not known"),
    ):
        assert generate(folder, "--output", out, *arguments) == 1
        err = capsys.readouterr().err
        assert wanted in err
        assert err.count("\n") == 1
        assert not out.exists()


def test_a_gpu_that_is_not_there_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from baize_engine.backend import devices

    monkeypatch.setattr(devices, "_gpu_count", lambda: 0)
    assert generate(folder, "--prompt", "a", "--device", "cuda:1") == 1
    assert "device cuda:1 cannot be used: no CUDA driver with a GPU was found" in capsys.readouterr().err
    monkeypatch.setattr(devices, "_gpu_count", lambda: 1)
    monkeypatch.setattr(devices, "_no_gpu", lambda: None)
    assert generate(folder, "--prompt", "a", "--device", "cuda:1") == 1
    assert "device cuda:1 cannot be used: this machine has 1 GPU(s)" in capsys.readouterr().err


def test_a_seed_that_was_drawn_is_told_and_brings_the_text_back(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--prompt", "the cat", "--max_new_tokens", 12, "--temperature", 2)
    assert generate(folder, *flags) == 0
    out, err = capsys.readouterr()
    assert err.startswith("baize: --seed ")
    assert generate(folder, *flags, *err.split()[1:]) == 0
    assert tuple(capsys.readouterr()) == (out, "")
    assert generate(folder, *flags[:-2]) == 0
    assert capsys.readouterr().err == ""  # a greedy one draws none


@pytest.mark.parametrize(("extra", "code"), [(None, 3), ("error", 3), ("keep", 0), ("drop", 0)])
def test_columns_of_the_users_own(folder: Path, tmp_path: Path, extra: str | None, code: int) -> None:
    lines = [{"prompt": "a", "topic": "cats", "n_words": 5}, {"prompt": "a", "meta": {"topic": "dogs"}}]
    path, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    flags = ["--input", path, "--output", out, "--max_new_tokens", 2, *(("--extra_columns", extra) if extra else ())]
    assert generate(folder, *flags) == code
    first, second = read(out)
    assert ('unknown name "n_words"' in first.get("error", "")) == (code == 3)
    assert first.get("extra") == ({"topic": "cats", "n_words": 5} if extra == "keep" else None)
    assert second["meta"] == {"topic": "dogs"}
    assert generate(folder, *flags, "--resume") == code
