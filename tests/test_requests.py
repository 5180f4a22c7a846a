"""Requests to an engine: what becomes of prompts and parameters, and what is refused, by name and index."""

from __future__ import annotations

import pytest
from fake_engine import all_free, make, saying
from fakes import EOS, VOCAB, TableDecoder

from baize_engine.errors import RequestError
from baize_engine.generation.params import SamplingParams


def test_prompts_and_params_one_for_all_or_one_each() -> None:
    engine = make(TableDecoder(VOCAB), None)
    short, long = SamplingParams(max_new_tokens=2, ignore_eos=True, n=2), SamplingParams(max_new_tokens=3)
    done = engine.generate([[1, 5], [1, 6]], [short, long])
    assert [(c.prompt_index, c.index) for c in done] == [(0, 0), (0, 1), (1, 0)]
    assert done[0].token_ids == done[1].token_ids
    assert [c.text for c in done] == ["", "", ""]
    assert engine.generate([1, 5], short)[0].token_ids == done[0].token_ids
    assert engine.generate([]) == []


def test_a_fresh_seed_is_recorded_and_brings_the_samples_back() -> None:
    engine = make(TableDecoder(VOCAB), None)
    drawn = SamplingParams(n=2, max_new_tokens=3, temperature=1.0)
    first = engine.generate([1, 5], drawn)
    assert first[0].seed == first[1].seed != engine.generate([1, 5], drawn)[0].seed
    assert engine.generate([1, 5], SamplingParams(seed=7))[0].seed == 7


@pytest.mark.parametrize(
    ("prompts", "wanted"),
    [
        ([[1, 5], []], "prompt 1 has 0 tokens, wanted 1 to 59"),
        ([[1, 5], [1] * 60], "prompt 1 has 60 tokens, wanted 1 to 59"),
        ([[1, 5], [1, VOCAB]], f"prompt 1 has {VOCAB} at 1, wanted a token id from 0 to {VOCAB - 1}"),
        ([1, -5], "prompt 0 has -5 at 1"),
        ([[1, "a"]], "prompt 0 has 'a' at 1"),
        (["ok", 5.0], "prompt 1 is 5.0, wanted a text or a list of token ids"),
    ],
)
def test_refuses_prompts_by_index(prompts: list, wanted: str) -> None:
    engine = saying("a")
    with pytest.raises(RequestError, match=wanted):
        engine.generate(prompts)
    assert all_free(engine)


def test_without_a_tokenizer_text_is_refused_with_the_reason() -> None:
    engine = make(TableDecoder(VOCAB), None, why_no_text="x/tokenizer.model: absent")
    for request in (
        lambda: engine.generate(["text"]),
        lambda: engine.generate([1, 5], SamplingParams(stop="x")),
        lambda: engine.stream([1, 5]),
        lambda: engine.chat([{"role": "user", "content": "Hi"}]),
        lambda: engine.score([1, 5], ["text"]),
    ):
        with pytest.raises(RequestError, match=r"needs a tokenizer: x/tokenizer\.model: absent"):
            request()


def test_parameters_that_this_model_cannot_serve_are_refused_by_name() -> None:
    engine = make(TableDecoder(VOCAB), None)
    for asked, wanted in (
        ({"logit_bias": {VOCAB: 1.0}}, f"logit_bias has {VOCAB}, wanted token ids from 0 to {VOCAB - 1}"),
        ({"allowed_token_ids": [EOS], "min_new_tokens": 1}, "min_new_tokens is 1, but every allowed token ends"),
        ({"banned_token_ids": range(VOCAB)}, "banned_token_ids bans every allowed token"),
    ):
        with pytest.raises(RequestError, match=wanted):
            engine.generate([[1, 5], [1, 6]], [SamplingParams(), SamplingParams(**asked)])
    (done,) = engine.generate([1, 5], SamplingParams(allowed_token_ids=[EOS], min_new_tokens=1, ignore_eos=True, n=1))
    assert set(done.token_ids) == {EOS}


def test_refuses_wrong_counts_and_types() -> None:
    engine = saying("a")
    with pytest.raises(RequestError, match="params has 2 entries, wanted one for all or one for each of 1 prompts"):
        engine.generate("q", [SamplingParams()] * 2)
    with pytest.raises(RequestError, match=r"params\[0\] is 'greedy'"):
        engine.generate("q", ["greedy"])  # type: ignore[list-item]
    for asked, wanted in (
        (lambda: engine.generate(5), "prompts is 5, wanted a text, a list of token ids, or a list of these"),
        (lambda: engine.generate({"q": 1}), "prompts is {'q': 1}, wanted a text"),
        (lambda: engine.stream_many(iter("q")), "prompts is <.*>, wanted a text"),
        (lambda: engine.generate("q", 0.7), r"params is 0\.7, wanted SamplingParams or a list of them"),
        (lambda: engine.next_token_logprobs("q", 5), "candidate_token_ids is 5, wanted a list of token ids"),
    ):
        with pytest.raises(RequestError, match=wanted):
            asked()  # type: ignore[no-untyped-call]
    with pytest.raises(RequestError, match="a stream has one sample"):
        engine.stream("q", SamplingParams(n=2))
    with pytest.raises(RequestError, match="a chat has one reply"):
        engine.chat([{"role": "user", "content": "q"}], SamplingParams(n=2))
    with pytest.raises(RequestError, match="completions is 'abc'"):
        engine.score("q", "abc")
    with pytest.raises(RequestError, match="completion 0 and its prompt have 62 tokens, wanted at most 60"):
        engine.score("q", ["x" * 60])
    with pytest.raises(RequestError, match="candidate_token_ids has 999 at 0"):
        engine.next_token_logprobs("q", [999])
