"""Tasks run on an engine: answers as transformers gives them, records that are resumed, refusals before anything runs."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_engine
import pytest
import torch
import toy_tasks
from assets import shared
from fakes import VOCAB, TableDecoder
from toy_tasks import Item, ToyChoice, ToyText

from baize_engine import Engine, SamplingParams
from baize_engine.errors import DataError, OutputError, RequestError
from baize_engine.evaluation import evaluate
from baize_engine.evaluation.task import Verdict


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other crawl on a machine that has other work."""
    held = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(held)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(folder, device="cpu") as engine:
        yield engine


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_tasks.write_data(tmp_path_factory.mktemp("data"))


def both(judged: bool = True) -> list[Any]:
    return [ToyChoice("choice", judged), ToyText("text", judged)]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def plain_answers(folder: Path, engine: Engine, data: Path, add_bos: bool = True) -> tuple[list[int], list[list[int]]]:
    """What a loop over transformers' model gives, a prompt at a time: the numbers of the options, and the ids of the texts."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    chosen, made = [], []
    for item in ToyChoice("choice").examples(data, 42):
        prompt = f"<|user|>\n{item.text}\n<|assistant|>\nSo"
        ids = torch.tensor([tokenizer.encode(prompt, add_bos=add_bos)])
        candidates = [tokenizer.encode(option, add_bos=False)[0] for option in ("the", "cat", "dog")]
        with torch.inference_mode():
            chosen.append(int(model(ids).logits[0, -1, candidates].argmax()))
            for _ in range(5):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        made.append(ids[0, -5:].tolist())
    return chosen, made


@pytest.mark.parametrize("add_bos", [True, False])
def test_predictions_are_those_of_transformers(
    folder: Path, engine: Engine, data: Path, tmp_path: Path, add_bos: bool
) -> None:
    check_against_transformers(folder, engine, data, tmp_path, add_bos)


def test_predictions_of_a_trained_model_are_those_of_transformers(data: Path, tmp_path: Path) -> None:
    folder = shared("assets/stories260K")
    with Engine.from_pretrained(folder, device="cpu", dtype="float32") as engine:
        check_against_transformers(folder, engine, data, tmp_path, True)


def check_against_transformers(folder: Path, engine: Engine, data: Path, out: Path, add_bos: bool) -> None:
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    chosen, made = plain_answers(folder, engine, data, add_bos)
    results = evaluate(engine, both(), data, out, add_bos=add_bos)
    options = ("the", "cat", "dog")
    choices, texts = read(out / "choice.jsonl"), read(out / "text.jsonl")
    assert [record["outputs"] for record in choices] == [[options[number]] for number in chosen]
    assert [record["logprobs"].index(max(record["logprobs"])) for record in choices] == chosen
    for record, ids, item in zip(texts, made, ToyText("text").examples(data, 42), strict=True):
        prompt = tokenizer.encode(f"<|user|>\n{item.text}\n<|assistant|>\nSo", add_bos=add_bos)
        whole = tokenizer.decode([*prompt, *ids])
        assert record["outputs"] == [whole.removeprefix(tokenizer.decode(prompt))]
        assert (record["prompt_tokens"], record["finish_reasons"]) == (len(prompt), ["length"])
    right = [100.0 * (options[number] == "the") for number in chosen]
    assert results[0].scores[0].value == pytest.approx(sum(right) / len(right))


def test_records_and_results_say_what_was_asked_and_what_came_out(engine: Engine, data: Path, tmp_path: Path) -> None:
    results = evaluate(engine, both(), data, tmp_path / "new" / "out", limit=2, seed=7, model={"files": ["a"]})
    out = tmp_path / "new" / "out"
    names = {"choice.jsonl", "text.jsonl", "choice_outputs.txt", "text_outputs.txt", "results.json"}
    assert {path.name for path in out.iterdir()} == names
    for task in ("choice", "text"):
        records = read(out / f"{task}.jsonl")
        assert [record["name"] for record in records] == ["cats/1", "cats/2", "dogs/4", "dogs/5"]
        assert [record["group"] for record in records] == ["cats", "cats", "dogs", "dogs"]
        assert len({record["input"] for record in records}) == 4
        for record in records:
            assert (record["prediction"], record["gold"]) == (record["outputs"], "the")
            assert record["measures"] == {"right": float("the" in record["outputs"][0])}
        told = (out / f"{task}_outputs.txt").read_text().splitlines()
        assert told == [f"{record['name']} {record['outputs']!r}" for record in records]
    choice, text = results
    assert [len(record["logprobs"]) for record in read(out / "choice.jsonl")] == [3] * 4
    assert (choice.task, choice.examples, choice.failed, choice.resumed) == ("choice", 4, 0, 0)
    assert (choice.scores[0].count, choice.scores[0].card, list(choice.groups)) == (4, 43.5, ["cats", "dogs"])
    assert [score.count for scores in choice.groups.values() for score in scores] == [2, 2]
    prompts = sum(record["prompt_tokens"] for record in read(out / "choice.jsonl"))
    assert (choice.usage.prompt_tokens, choice.usage.generated_tokens) == (prompts, 0)
    assert 0 < choice.usage.computed_tokens < prompts
    assert (text.usage.generated_tokens, text.usage.prompt_tokens) == (20, prompts)
    told = json.loads((out / "results.json").read_text())
    assert (told["model"], told["options"]["limit"], told["options"]["seed"]) == ({"files": ["a"]}, 2, 7)
    assert [each["task"] for each in told["tasks"]] == ["choice", "text"]
    assert told["tasks"][0]["scores"] == [
        {
            "metric": "right",
            "value": choice.scores[0].value,
            "standard_error": choice.scores[0].standard_error,
            "count": 4,
            "card": 43.5,
        }
    ]
    assert told["tasks"][1]["generated_tokens"] == 20


def test_the_raw_format_asks_the_text_itself(engine: Engine, data: Path, tmp_path: Path) -> None:
    evaluate(engine, both(), data, tmp_path / "chat")
    evaluate(engine, both(), data, tmp_path / "raw", format="raw")
    assert engine.tokenizer is not None
    for task in ("choice", "text"):
        chat, raw = read(tmp_path / "chat" / f"{task}.jsonl"), read(tmp_path / "raw" / f"{task}.jsonl")
        items = ToyText("text").examples(data, 42)
        assert [record["prompt_tokens"] for record in raw] == [
            len(engine.encode(item.text, add_bos=True)) for item in items
        ]
        assert all(mine["prompt_tokens"] > other["prompt_tokens"] for mine, other in zip(chat, raw, strict=True))


def test_a_run_killed_at_any_byte_is_resumed_to_the_same_bytes(
    engine: Engine, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)  # thousands would wait for a disk that others use
    evaluate(engine, both(), data, tmp_path, limit=1)
    for task in both():
        path = tmp_path / f"{task.name}.jsonl"
        whole = path.read_bytes()
        for cut in range(len(whole) + 1):
            path.write_bytes(whole[:cut])
            (result,) = evaluate(engine, [task], data, tmp_path, limit=1, resume=True)
            assert path.read_bytes() == whole
            assert (result.examples, result.resumed) == (2, whole[:cut].count(b"\n"))


def test_a_finished_run_is_resumed_without_a_token(engine: Engine, data: Path, tmp_path: Path) -> None:
    first = evaluate(engine, both(), data, tmp_path)
    before = engine.usage
    again = evaluate(engine, both(), data, tmp_path, resume=True)
    assert engine.usage == before
    assert [(one.scores, one.groups) for one in again] == [(one.scores, one.groups) for one in first]
    assert [one.resumed for one in again] == [6, 6]


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": [ToyText("text", params=SamplingParams(max_new_tokens=4, ignore_eos=True))]},
        {"model": {"files": ["other"]}},
        {"format": "raw"},
        {"add_bos": False},
        {"limit": 1},
        {"subjects": ["cats"]},
        {"resume": False},
    ],
)
def test_records_of_another_run_are_refused_and_left(
    engine: Engine, data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    evaluate(engine, [ToyText("text")], data, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    usage = engine.usage
    arguments = {"tasks": [ToyText("text")], "data": data, "out": tmp_path, "resume": True, **changes}
    wanted = "use --resume" if changes == {"resume": False} else "name another --out"
    with pytest.raises(OutputError, match=wanted):
        evaluate(engine, **arguments)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert engine.usage == usage


def test_a_resumed_run_judges_what_could_not_be_judged_before(engine: Engine, data: Path, tmp_path: Path) -> None:
    wanted = evaluate(engine, both(), data, tmp_path / "wanted")
    evaluate(engine, both(judged=False), data, tmp_path / "out")
    before = engine.usage
    found = evaluate(engine, both(), data, tmp_path / "out", resume=True)
    assert engine.usage == before
    assert [result.scores for result in found] == [result.scores for result in wanted]
    names = ("choice.jsonl", "text.jsonl", "choice_outputs.txt", "text_outputs.txt")
    same = [(tmp_path / "wanted" / name).read_bytes() for name in names]
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == same
    for name in names[:2]:  # what was answered before a kill, too
        path = tmp_path / "out" / name
        unjudged = path.read_bytes().replace(b'{"right": 1.0}', b"{}").replace(b'{"right": 0.0}', b"{}")
        path.write_bytes(b"".join(unjudged.splitlines(keepends=True)[:3]) + b'{"name": ')
    found = evaluate(engine, both(), data, tmp_path / "out", resume=True)
    assert [(result.scores, result.resumed) for result in found] == [(result.scores, 3) for result in wanted]
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == same
    again = evaluate(engine, both(judged=False), data, tmp_path / "out", resume=True)  # verdicts stay
    assert [result.scores for result in again] == [result.scores for result in wanted]
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == same


def test_verdicts_stand_unless_their_task_says_that_they_change(engine: Engine, data: Path, tmp_path: Path) -> None:
    judged: list[str] = []

    class Counting(ToyText):
        def judge(self, example: Item, outputs: Any) -> Verdict:
            judged.append(example.name)
            return super().judge(example, outputs)

    evaluate(engine, [ToyText("text")], data, tmp_path, limit=1)
    task = Counting("text")
    evaluate(engine, [task], data, tmp_path, limit=1, resume=True)
    assert judged == []
    task.verdicts_change = True
    evaluate(engine, [task], data, tmp_path, limit=1, resume=True)
    assert judged == ["cats/1", "dogs/4"]


def test_two_runs_do_not_write_the_same_records(engine: Engine, data: Path, tmp_path: Path) -> None:
    class Nested(ToyText):
        def judge(self, example: Item, outputs: Any) -> Verdict:
            with pytest.raises(OutputError, match="another run is writing to it"):
                evaluate(engine, [ToyText("text")], data, tmp_path, resume=True)
            return super().judge(example, outputs)

    assert evaluate(engine, [Nested("text")], data, tmp_path, limit=1)[0].examples == 2


def test_a_prompt_that_is_too_long_is_refused_before_anything_runs(engine: Engine, tmp_path: Path) -> None:
    data = toy_tasks.write_data(tmp_path / "data")
    path = data / toy_tasks.FILE
    path.write_text(path.read_text().replace("dogs: ", "dogs: " + "cat " * 200))
    before = engine.usage
    with pytest.raises(
        RequestError,
        match=r"text, example dogs/4: the prompt has \d+ tokens, the model takes 127; 3 of 6 examples are too long",
    ):
        evaluate(engine, [ToyText("text")], data, tmp_path / "out", too_long="refuse")
    assert engine.usage == before
    assert not (tmp_path / "out").exists()
    evaluate(engine, [ToyText("text")], data, tmp_path / "out", subjects=["cats"], too_long="refuse")
    with pytest.raises(RequestError, match=r"text, example dogs/4: .*; 3 of 3 examples are too long$"):
        evaluate(engine, [ToyText("text")], data, tmp_path / "none", subjects=["dogs"])


@pytest.mark.parametrize("task", both())
def test_examples_that_are_too_long_count_as_wrong(engine: Engine, tmp_path: Path, task: toy_tasks.Toy) -> None:
    data = toy_tasks.write_data(tmp_path / "data")
    path = data / toy_tasks.FILE
    (short,) = evaluate(engine, [task], data, tmp_path / "short", subjects=["cats"])
    path.write_text(path.read_text().replace("dogs: ", "dogs: " + "cat " * 200))
    (result,) = evaluate(engine, [task], data, tmp_path / "out")
    assert (result.examples, result.too_long, result.failed, result.scores[0].count) == (6, 3, 0, 6)
    assert result.groups["cats"] == [replace(score, card=None) for score in short.scores]
    assert result.groups["dogs"][0].value == 0
    assert result.usage.prompt_tokens == short.usage.prompt_tokens
    records = read(tmp_path / "out" / f"{task.name}.jsonl")
    assert records[:3] == read(tmp_path / "short" / f"{task.name}.jsonl")
    for record in records[3:]:
        assert (
            record["error"]
            == f"the prompt has {record['prompt_tokens']} tokens, the model takes {127 + (task.name == 'choice')}"
        )
        assert ("outputs" in record, record["measures"]) == (False, {"right": 0.0})
    (again,) = evaluate(engine, [task], data, tmp_path / "out", resume=True)
    assert (again.scores, again.too_long, again.resumed) == (result.scores, 3, 6)


def test_what_is_too_long_is_wrong_even_where_silence_would_be_right(engine: Engine, tmp_path: Path) -> None:
    class Silent(ToyText):
        def judge(self, example: Item, outputs: Any) -> Verdict:
            return Verdict(outputs, "", {"right": float(outputs == [""]), "f1": 1.0})

    data = toy_tasks.write_data(tmp_path / "data")
    path = data / toy_tasks.FILE
    path.write_text(path.read_text().replace("dogs: ", "dogs: " + "cat " * 200))
    evaluate(engine, [Silent("text")], data, tmp_path / "out", too_long="wrong")
    assert [record["measures"] for record in read(tmp_path / "out" / "text.jsonl")[3:]] == [
        {"right": 0.0, "f1": 0.0}
    ] * 3


def test_an_answer_ends_where_the_model_does(engine: Engine, data: Path, tmp_path: Path) -> None:
    long = ToyText("text", params=SamplingParams(max_new_tokens=999, ignore_eos=True))
    (result,) = evaluate(engine, [long], data, tmp_path, limit=1)
    assert result.usage.prompt_tokens + result.usage.generated_tokens == 2 * engine.max_model_len


def test_what_is_wrong_is_refused_by_name(engine: Engine, data: Path, tmp_path: Path) -> None:
    for arguments, wanted in (
        ({"tasks": "mmlu"}, "there is no task 'mmlu', wanted card or some of mmlu_0shot, "),
        ({"tasks": []}, "tasks is empty"),
        ({"tasks": [ToyText("x"), ToyText("x")]}, "the task x is there twice"),
        ({"subjects": ["birds"]}, "subjects has 'birds', wanted some of cats, dogs"),
        ({"limit": 0}, "limit is 0"),
    ):
        with pytest.raises(RequestError, match=wanted):
            evaluate(engine, **{"tasks": both(), "data": data, "out": tmp_path / "out", **arguments})
    with pytest.raises(DataError, match=r"toy\.jsonl is absent from .*: download it from nowhere"):
        evaluate(engine, both(), tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="is not a folder"):
        evaluate(engine, both(), tmp_path / "absent", tmp_path / "out")
    (tmp_path / toy_tasks.FILE).write_text("")
    with pytest.raises(DataError, match=r"choice, text: .* has no example of it"):
        evaluate(engine, both(), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="taken is not a folder"):
        evaluate(engine, both(), data, tmp_path / "taken")


def test_nothing_is_scored_where_nothing_is_judged(engine: Engine, data: Path, tmp_path: Path) -> None:
    for result in evaluate(engine, both(judged=False), data, tmp_path):
        assert (result.examples, [score.value for score in result.scores]) == (6, [None])


def test_an_example_that_fails_is_told_and_does_not_count(data: Path, tmp_path: Path) -> None:
    decoder = TableDecoder(VOCAB)
    engine = fake_engine.make(decoder, blocks=256, max_model_len=200)
    (whole,) = evaluate(engine, [ToyText("text")], data, tmp_path / "whole", format="raw")
    lengths = [record["prompt_tokens"] for record in read(tmp_path / "whole" / "text.jsonl")]
    decoder.fail_at = min(lengths)
    results = evaluate(engine, both(), data, tmp_path / "out", format="raw")
    failed = (
        [length <= decoder.fail_at < length + 5 for length in lengths],
        [length == decoder.fail_at for length in lengths],
    )
    for task, wrong in zip(("text", "choice"), failed, strict=True):
        records = read(tmp_path / "out" / f"{task}.jsonl")
        assert ["error" in record for record in records] == wrong
        assert "measures" not in records[wrong.index(True)]
    choice, text = results
    assert (whole.examples, whole.failed, choice.failed, text.failed) == (6, 0, sum(failed[1]), sum(failed[0]))
    assert [result.scores[0].count for result in results] == [6 - choice.failed, 6 - text.failed]
    again = evaluate(engine, both(), data, tmp_path / "out", format="raw", resume=True)
    assert [(one.failed, one.scores) for one in again] == [(one.failed, one.scores) for one in results]


def test_bars_are_shown_where_they_are_asked_for(
    engine: Engine, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for shown in (False, True):
        monkeypatch.setattr("sys.stderr", terminal := Terminal())
        evaluate(engine, both(), data, tmp_path / str(shown), progress=shown)
        said = terminal.getvalue()
        assert [name in said for name in ("choice, prompts: ", "choice: ", "text: ", "6/6", "30 tokens")] == [shown] * 5


def test_interruptions_keep_what_is_done(engine: Engine, data: Path, tmp_path: Path) -> None:
    class Interrupted(ToyText):
        def judge(self, example: Item, outputs: Any) -> Verdict:
            if example.name == "dogs/4":
                raise KeyboardInterrupt
            return super().judge(example, outputs)

    with pytest.raises(KeyboardInterrupt):
        evaluate(engine, [ToyChoice("choice"), Interrupted("text"), ToyText("later")], data, tmp_path)
    names = {"choice.jsonl", "choice_outputs.txt", "text.jsonl", "results.json"}
    assert {path.name for path in tmp_path.iterdir()} == names  # a file without a record is removed
    assert [each["task"] for each in json.loads((tmp_path / "results.json").read_text())["tasks"]] == ["choice"]
    results = evaluate(engine, [ToyChoice("choice"), ToyText("text"), ToyText("later")], data, tmp_path, resume=True)
    assert [(one.examples, one.resumed) for one in results] == [(6, 6), (6, 3), (6, 0)]
