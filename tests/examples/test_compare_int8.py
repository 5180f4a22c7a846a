"""examples/compare_int8.py: its figures are those of Engine.prompt_logprobs on the same texts."""

from __future__ import annotations

from math import exp
from pathlib import Path

import pytest
from example_runs import output

from baize_engine import Engine, quantize
from baize_engine.generation.sampling import TokenLogprobs

NAME = "compare_int8.py"
QUESTIONS = ["What is the capital of France?", "Write a story.", "Count to ten."]


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix == ".safetensors")


def divergence(one: TokenLogprobs, other: TokenLogprobs) -> float:
    """KL in nats of two distributions, each of all tokens."""
    q = dict(other.top)
    return sum(exp(logprob) * (logprob - q[token]) for token, logprob in one.top)


def test_it_compares_what_the_engines_say(demo: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    quantize(demo, made)
    lines = output(NAME, *QUESTIONS, "--model", demo, "--int8", "int8", folder=tmp_path)
    sizes = stored(demo), stored(tmp_path / "int8")
    assert sizes[1] == stored(made) < sizes[0]
    assert lines[:2] == [f"{demo}: {sizes[0]:,} bytes", f"int8: {sizes[1]:,} bytes"]
    assert len(lines) == 3 + len(QUESTIONS)
    with Engine.from_pretrained(demo, device="cpu") as full, Engine.from_pretrained(made, device="cpu") as int8:
        for line, question in zip(lines[3:], QUESTIONS, strict=True):
            messages = [{"role": "user", "content": question}]
            ids, other = (engine.chat(messages).token_ids for engine in (full, int8))
            text = [*full.chat_ids(messages), *ids]
            p, q = (
                engine.prompt_logprobs([text], full.vocab_size)[0][-len(ids) :] for engine in (full, int8)
            )  # of the answer
            kl = sum(map(divergence, p, q)) / len(ids)
            same = sum(one.top[0][0] == two.top[0][0] for one, two in zip(p, q, strict=True))
            found, *rest = line.split(maxsplit=5)
            assert float(found) == pytest.approx(kl, rel=0.06, abs=2e-6)
            assert rest == [str(same), "of", str(len(ids)), "yes" if ids == other else "no", question]
            assert float(found) > -1e-6
    assert output(NAME, *QUESTIONS, "--model", demo, "--int8", "int8", folder=tmp_path) == lines  # of the same folder


def test_each_model_has_an_int8_form_of_its_own(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(demo)
    (tmp_path / "two").symlink_to(demo)
    for model in ("one", "two/"):  # the second does not find the first one's form
        form = f"{model.rstrip('/')}-int8"
        assert not (tmp_path / form).exists()
        lines = output(NAME, "Why?", "--model", model, folder=tmp_path)
        assert lines[:2] == [f"{model}: {stored(demo):,} bytes", f"{form}: {stored(tmp_path / form):,} bytes"]
