"""`baize eval` as it is typed: the bundled demo model on small data, kills and resumption, flags, refusals."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import card_data
import pytest
import slow_baize
from commands import forked_baize, read

import baize_engine
from baize_engine.cli import main

PAIR = Path(baize_engine.__file__).parent / "demo_pair"
FITTING = ["mmlu_0shot", "mmlu_5shot", "bbh_direct", "tydiqa_closed", "humaneval", "alpaca_farm"]  # in 512 positions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return card_data.write_data(tmp_path_factory.mktemp("data"))


def command(data: Path, out: Path, *more: object, tasks: list[str] | None = None) -> list[str]:
    # one thread: two that wait for each other crawl on a machine that has other work
    few = ["--device", "cpu", "--threads", "1", "--limit", "2"]
    return [*map(str, ("--tasks", *(tasks or FITTING), "--data", data, "--out", out, *few, *more))]


def test_the_demo_model_makes_a_table(
    demo: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(demo), *command(data, tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[:5] == ["task", "metric", "score", "error", "card"]
    assert [line.split()[0] for line in shown[1:] if line.split()[0] in FITTING] == FITTING
    told = json.loads((tmp_path / "results.json").read_text())
    assert [(each["task"], each["examples"]) for each in told["tasks"]] == [
        ("mmlu_0shot", 4), ("mmlu_5shot", 4), ("bbh_direct", 4), ("tydiqa_closed", 4), ("humaneval", 4), ("alpaca_farm", 2),
    ]  # fmt: skip
    assert told["options"] == {
        "format": "chat", "add_bos": True, "limit": 2, "subjects": None, "too_long": "wrong", "seed": 42,
        "allow_code_execution": False, "annotations": None,
    }  # fmt: skip
    assert "model.safetensors" in [name for name, _, _ in told["model"]["files"]]
    completions = read(tmp_path / "humaneval_completions_T0.8.jsonl")
    assert [each["task_id"] for each in completions] == ["HumanEval/0"] * 20 + ["HumanEval/1"] * 20
    (capital, _) = json.loads((tmp_path / "alpaca_farm_outputs.json").read_text())
    assert (capital["instruction"], "Paris" in capital["output"]) == ("What is the capital of France?", True)


def test_base_and_diff_are_evaluated_without_a_model_on_disk(
    demo: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = ["--path_raw", str(PAIR / "base"), "--path_diff", str(PAIR / "diff")]
    assert main(["eval", str(demo), *command(data, tmp_path / "model", tasks=FITTING[:1])]) == 0
    assert main(["eval", *pair, *command(data, tmp_path / "pair", tasks=FITTING[:1])]) == 0
    model, pair_ = (read(tmp_path / name / "mmlu_0shot.jsonl") for name in ("model", "pair"))
    assert [record["logprobs"] for record in model] == [record["logprobs"] for record in pair_]
    # it is another model to --resume
    assert main(["eval", *pair, *command(data, tmp_path / "model", "--resume", tasks=FITTING[:1])]) == 1
    assert "line 1 is not the answer to record 0" in capsys.readouterr().err


def test_win_rates_and_verdicts_on_programs_are_added_to_a_finished_run(
    demo: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ["humaneval", "alpaca_farm"]
    assert main(["eval", str(demo), *command(data, tmp_path, tasks=tasks)]) == 0
    outputs = json.loads((tmp_path / "alpaca_farm_outputs.json").read_text())
    annotations = [
        {**output, "output_1": "x", "output_2": output["output"], "preference": preference}
        for output, preference in zip(outputs, (2, 1), strict=True)
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    capsys.readouterr()
    more = ["--resume", "--annotations", tmp_path / "annotations.json", "--allow_code_execution"]
    assert main(["eval", str(demo), *command(data, tmp_path, *more, tasks=tasks)]) == 0
    human, farm = json.loads((tmp_path / "results.json").read_text())["tasks"]
    assert (farm["scores"][0]["value"], farm["scores"][0]["count"], farm["generated_tokens"]) == (50.0, 2, 0)
    assert [(score["value"], score["count"]) for score in human["scores"]] == [(0.0, 2), (0.0, 2)]
    assert (human["resumed"], human["generated_tokens"]) == (4, 0)
    assert {"passed", "result"} & {*read(tmp_path / "humaneval.jsonl")[0]["prediction"][0]} == {"result"}
    told = capsys.readouterr()
    assert "humaneval: 4 examples were answered before" in told.out
    assert "baize: " in told.err  # what keeps the programs apart


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on_without_loss_or_repetition(
    demo: Path, data: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    tasks = ["mmlu_0shot", "bbh_direct", "tydiqa_closed"]
    assert main(["eval", str(demo), *command(data, tmp_path / "whole", tasks=tasks)]) == 0
    out = tmp_path / "out"
    hold = slow_baize.WRITTEN, 5
    child, told = slow_baize.start(0, "eval", demo, *command(data, out, tasks=tasks), hold=hold)
    slow_baize.wait_for(told, *hold)
    os.kill(child.pid, sent)
    _, err = child.communicate(timeout=300)
    os.close(told)
    done = sum((out / f"{task}.jsonl").read_bytes().count(b"\n") for task in tasks if (out / f"{task}.jsonl").exists())
    assert 5 <= done < 12
    if sent == signal.SIGTERM:
        assert child.returncode == 130
        assert f"baize: interrupted; {done} records are in {out}; --resume continues" in err
        assert "Traceback" not in err
    again = forked_baize("eval", demo, *command(data, out, "--resume", tasks=tasks))
    assert (again.returncode, again.stderr) == (0, "")
    for task in tasks:
        assert (out / f"{task}.jsonl").read_bytes() == (tmp_path / "whole" / f"{task}.jsonl").read_bytes()


def test_an_interruption_before_the_first_record_says_so(
    demo: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("baize_engine.engine.Engine.next_token_logprobs", interrupted)
    assert main(["eval", str(demo), *command(data, tmp_path / "out", tasks=["mmlu_0shot"])]) == 130
    assert "baize: interrupted; nothing was answered yet" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_what_keeps_programs_apart_is_told_where_there_are_programs(
    demo: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baize_engine.evaluation.code_execution.CodeRunner", None)  # it is not asked
    more = command(data, tmp_path, "--allow_code_execution", tasks=["mmlu_0shot"])
    assert main(["eval", str(demo), *more]) == 0
    assert capsys.readouterr().err == ""


def test_failed_examples_end_with_3(
    demo: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from baize_engine.errors import BaizeError

    def broken(*_: object, **__: object) -> None:
        raise BaizeError("a logit is not finite")

    monkeypatch.setattr("baize_engine.engine.Engine.next_token_logprobs", broken)
    assert main(["eval", str(demo), *command(data, tmp_path, tasks=["mmlu_0shot"])]) == 3
    assert "mmlu_0shot: 4 of 4 examples failed and do not count" in capsys.readouterr().out


def test_flags_reach_the_options(demo: Path, data: Path, tmp_path: Path) -> None:
    more = [
        "--format",
        "raw",
        "--no-bos",
        "--subjects",
        "food",
        "--seed",
        "7",
        "--too_long",
        "refuse",
        "--quantize",
        "int8",
        "--quiet",
    ]
    assert main(["eval", str(demo), *command(data, tmp_path, *more, tasks=["mmlu_0shot"])]) == 0
    told = json.loads((tmp_path / "results.json").read_text())
    assert told["options"] == {
        "format": "raw", "add_bos": False, "limit": 2, "subjects": ["food"], "too_long": "refuse", "seed": 7,
        "allow_code_execution": False, "annotations": None,
    }  # fmt: skip
    assert told["model"]["settings"]["quantize"] == "int8"
    assert [record["name"] for record in read(tmp_path / "mmlu_0shot.jsonl")] == ["food/0", "food/1"]


def test_refusals_come_before_the_model_is_loaded(
    demo: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baize_engine.engine.Engine.from_pretrained", None)
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "mmlu_0shot.jsonl").write_text("")
    for tasks, folder, more, wanted in (
        (["mmlu"], data, (), "there is no task 'mmlu', wanted card or some of mmlu_0shot"),
        (["mmlu_0shot"], data, ("--subjects", "law"), "subjects has 'law', wanted some of animals, food"),
        (
            ["gsm_cot"],
            tmp_path,
            (),
            f"gsm8k_test.jsonl or test.jsonl is absent from {tmp_path}: download it from https",
        ),
        (["mmlu_0shot"], tmp_path / "absent", (), "absent is not a folder"),
        (["alpaca_farm"], data, ("--annotations", tmp_path / "a.json"), "a.json"),
        (
            ["mmlu_0shot"],
            data,
            ("--out", data / "gsm8k_test.jsonl"),
            "gsm8k_test.jsonl is not a folder: name another --out",
        ),
        (["mmlu_0shot"], data, ("--out", killed), "mmlu_0shot.jsonl exists: use --resume to continue, or name another"),
        (["mmlu_0shot"], data, ("--limit", "0"), "limit is 0"),
    ):
        assert main(["eval", str(demo), *command(folder, tmp_path / "out", *more, tasks=tasks)]) == 1
        assert wanted in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_asked_of_the_model_is_refused(
    demo: Path, folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(demo), *command(data, tmp_path / "out", tasks=["mmlu_0shot", "gsm_cot"])]) == 1
    err = capsys.readouterr().err
    assert "gsm_cot, example 0: the prompt has " in err
    assert err.count("the prompt has") == 1
    without = tmp_path / "without"
    without.mkdir()
    for name in ("config.json", "model.safetensors"):
        (without / name).write_bytes((folder / name).read_bytes())
    assert main(["eval", str(without), *command(data, tmp_path / "out", tasks=["mmlu_0shot"])]) == 1
    assert "an evaluation needs the model's tokenizer, and the model has none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_help_lists_the_tasks_with_the_cards_figures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "usage: baize eval MODEL --tasks TASK [TASK ...] --data DIR --out DIR [options]" in shown
    assert "mmlu_5shot (41.5); gsm_direct (4.5)" in shown
    with pytest.raises(SystemExit):
        main(["eval", "--tasks", "mmlu_0shot", "--data", "x", "--out", "y"])
    assert "wanted either MODEL, or --path_raw and --path_diff" in capsys.readouterr().err
