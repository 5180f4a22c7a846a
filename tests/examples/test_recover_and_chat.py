"""examples/recover_and_chat.py: what it prints is what recover, verify and Engine.chat say."""

from __future__ import annotations

from pathlib import Path

from example_runs import output, run

from baize_engine import Engine, SamplingParams, verify
from baize_engine.cli.demo import PAIR

NAME = "recover_and_chat.py"
QUESTIONS = ["Who are you?", "Write a story.", "Count to ten.", "Why?"]


def replies(folder: Path, questions: list[str]) -> list[str]:
    """What the model says to the questions of one conversation."""
    messages: list[dict[str, str]] = []
    with Engine.from_pretrained(folder, device="cpu") as engine:
        for question in questions:
            messages.append({"role": "user", "content": question})
            text = engine.chat(messages, SamplingParams(max_new_tokens=256)).text
            messages.append({"role": "assistant", "content": text})
    return [each["content"] for each in messages[1::2]]


def test_it_recovers_the_demo_pair_and_remembers_the_conversation(demo: Path, tmp_path: Path) -> None:
    first, *said = output(NAME, folder=tmp_path, typed="\n".join([*QUESTIONS, "", "not asked"]))
    tuned = tmp_path / "baize-demo"
    report = verify(tuned)
    assert first == f"baize-demo: {report.tensors} tensors, {report.bytes:,} bytes, verified"
    assert not verify(tuned, expect_manifest=demo).problems
    wanted = replies(demo, QUESTIONS)
    assert "\n".join(said) == "".join(f"> {reply}\n" for reply in wanted) + "> "
    assert wanted[1:] != [replies(demo, [question])[0] for question in QUESTIONS[1:]]  # without what was said before


def test_a_second_run_keeps_the_model_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    def chat() -> list[str]:
        return output(NAME, PAIR / "base", PAIR / "diff", "tuned", folder=tmp_path, typed=QUESTIONS[0])

    before = chat()  # the end of the input ends the chat
    (weights,) = (tmp_path / "tuned").glob("*.safetensors")
    made = weights.stat().st_mtime_ns
    assert chat() == before
    assert weights.stat().st_mtime_ns == made
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    done = run(NAME, PAIR / "base", PAIR / "diff", "tuned", folder=tmp_path, typed=QUESTIONS[0])
    assert done.returncode == 1
    assert ">" not in done.stdout
    assert "SHA-256" in done.stderr
