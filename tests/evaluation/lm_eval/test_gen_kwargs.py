"""generation_kwargs as tasks have them: what becomes of each, and what is refused."""

from __future__ import annotations

import pytest
from fakes import small_model

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (the extra eval)")

from baize_engine.errors import RequestError
from baize_engine.evaluation.lm_eval.gen_kwargs import GenerationSettings, generation_of
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer


def made(**gen_kwargs: object) -> GenerationSettings:
    return generation_of(gen_kwargs, SentencePieceTokenizer(small_model()), max_gen_toks=7)


def test_greedy_unless_something_is_drawn() -> None:
    assert made().params.temperature == 0.0
    assert made(do_sample=False, temperature=0.7).params.temperature == 0.0
    assert made(temperature=0.7).params.temperature == 0.7
    drawn = made(do_sample=True, temperature=0.8, top_p=0.95, top_k=40, seed=3).params
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.seed) == (0.8, 0.95, 40, 3)
    assert made(do_sample=False, top_p=0.0, top_k=-1).params == made().params  # tasks have such values beside do_sample


def test_lengths_and_penalties() -> None:
    assert made().params.max_new_tokens == 7
    assert made(max_gen_toks=3).params.max_new_tokens == 3
    assert made(max_new_tokens=4).params.max_new_tokens == 4
    assert made(repetition_penalty=1.5).params.repetition_penalty == 1.5


def test_stop_strings() -> None:
    assert made(until="cat").until == ("cat", "</s>")  # models of 2023 also spell it
    found = made(until=["\n\n", "</s>", " cat", ""])
    assert found.until == ("\n\n", "</s>", " cat", "")
    assert found.params.stop == ("\n\n", "</s>")
    assert found.params.stop_token_ids == (2,)


def test_what_cannot_be_served_is_named() -> None:
    with pytest.raises(
        RequestError, match="length_penalty in generation_kwargs is unknown, wanted until, max_gen_toks"
    ):
        made(length_penalty=2.0)
    with pytest.raises(RequestError, match="num_beams is 4 in generation_kwargs, wanted 1"):
        made(num_beams=4)
    assert made(num_beams=1) == made()
    with pytest.raises(RequestError, match="top_p"):
        made(temperature=1.0, top_p=2.0)
    given = {"until": ["a"], "max_gen_toks": 3}
    generation_of(given, SentencePieceTokenizer(small_model()), 7)
    assert given == {"until": ["a"], "max_gen_toks": 3}  # the harness's cache finds results by it
