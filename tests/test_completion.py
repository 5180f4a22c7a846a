"""Completions: where their text ends, why, and what of it is shown."""

from __future__ import annotations

import pytest
from fake_engine import TOKENIZER, all_free, saying
from fakes import EOS, FIRST_BYTE, VOCAB

from baize_engine.completion import Completion
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sequence import Sequence


def test_an_answer_ends_at_the_end_token() -> None:
    engine = saying("héy 😀")
    (done,) = engine.generate("q")
    assert (done.text, done.finish_reason, done.stop_reason) == ("héy 😀", "stop", EOS)
    assert done.token_ids == [*TOKENIZER.encode("héy 😀", add_bos=False), EOS]
    assert done.logprobs is None
    assert all_free(engine)


def test_the_steps_that_an_answer_took_are_counted() -> None:
    (done,) = saying("abcd").generate("q")
    assert (len(done.token_ids), done.num_steps, done.num_draft_tokens, done.num_accepted_tokens) == (5, 4, 0, 0)
    (first,) = saying("abcd").generate("q", SamplingParams(max_new_tokens=1))  # which comes with the prompt
    assert (len(first.token_ids), first.num_steps) == (1, 0)


def test_counts_of_speculation_do_not_make_completions_differ() -> None:
    def completion(steps: int, proposed: int, accepted: int) -> Completion:
        sequence = Sequence([1], SamplingParams(), 9, token_ids=[5, 6, 7], finish_reason="length")
        sequence.num_steps, sequence.num_proposed, sequence.num_accepted = steps, proposed, accepted
        return Completion.of(sequence)

    speculated, plain = completion(1, 4, 1), completion(2, 0, 0)
    assert (speculated.num_steps, speculated.num_draft_tokens, speculated.num_accepted_tokens) == (1, 4, 1)
    assert speculated == plain
    assert "num_steps=1, num_draft_tokens=4, num_accepted_tokens=1" in repr(speculated)


def test_ignore_eos_and_max_new_tokens() -> None:
    (done,) = saying("ab").generate("q", SamplingParams(ignore_eos=True, max_new_tokens=5))
    assert (done.text, done.finish_reason, done.stop_reason) == ("ab", "length", None)
    assert done.token_ids[2:] == [EOS] * 3


def test_a_named_stop_id_is_cut_from_the_text() -> None:
    bang = FIRST_BYTE + ord("!")
    (done,) = saying("ab!cd").generate("q", SamplingParams(stop_token_ids=[bang]))
    assert (done.text, done.finish_reason, done.stop_reason) == ("ab", "stop", bang)
    assert done.token_ids[-1] == bang


def test_a_stop_string_across_tokens_is_cut_and_named() -> None:
    engine = saying("one\n\ntwo")
    (done,) = engine.generate("q", SamplingParams(stop=["###", "\n\n"]))
    assert (done.text, done.finish_reason, done.stop_reason) == ("one", "stop", "\n\n")
    assert len(done.token_ids) == 5
    assert all_free(engine)


BANG = FIRST_BYTE + ord("!")


@pytest.mark.parametrize(
    ("says", "asked", "text", "tokens", "finish", "stop"),
    [
        ("abcd", {"max_new_tokens": 5}, "abcd", 5, "stop", EOS),  # the end token is the last one allowed
        ("abcd", {"max_new_tokens": 4}, "abcd", 4, "length", None),
        ("abcd", {"max_new_tokens": 3, "stop": "c"}, "ab", 3, "stop", "c"),  # so is the one that completes the string
        ("abcd", {"max_new_tokens": 2, "stop": "bc"}, "ab", 2, "length", None),
        ("ab!d", {"stop_token_ids": [BANG], "stop": "!"}, "ab", 3, "stop", BANG),  # the id comes before its text
        ("ab!d", {"stop_token_ids": [BANG], "stop": "b"}, "a", 2, "stop", "b"),
        ("abcd", {"stop": ["cd", "bcd", "d"]}, "a", 4, "stop", "bcd"),  # of those completed together the longest
        ("abab", {"stop": "ab"}, "", 2, "stop", "ab"),
        ("q", {"stop": "qq"}, "q", 2, "stop", EOS),  # the prompt's end is no part of the text
        ("é", {"stop": "é"}, "", 2, "stop", "é"),
        ("ab", {"stop_token_ids": [EOS], "ignore_eos": True}, "ab", 3, "stop", EOS),
        ("ab", {"stop_token_ids": [VOCAB + 9]}, "ab", 3, "stop", EOS),
        ("!!", {"stop_token_ids": [BANG], "min_new_tokens": 1, "logit_bias": {3: 1.0}}, "\0", 2, "stop", BANG),
        (
            "ab",
            {"min_new_tokens": 5, "max_new_tokens": 5, "banned_token_ids": [0, 1, 2]},
            "ab\0\0\0",
            5,
            "length",
            None,
        ),
        ("xxxx", {"stop": "x", "min_new_tokens": 3}, "xx", 3, "stop", "x"),  # looked for in what comes after two
        (
            "xyxy",
            {"stop": "xy", "min_new_tokens": 2},
            "",
            2,
            "stop",
            "xy",
        ),  # it begins before, and is complete with the second
        ("xyxy", {"stop": "xy", "min_new_tokens": 3}, "xy", 4, "stop", "xy"),
        ("abcd", {"stop": ["bc", "ab"], "min_new_tokens": 3}, "a", 3, "stop", "bc"),
    ],
)
def test_why_a_sample_ended(says: str, asked: dict, text: str, tokens: int, finish: str, stop: int | str) -> None:
    engine = saying(says)
    params = SamplingParams(**asked)
    (done,) = engine.generate("q", params)
    found = (done.text, len(done.token_ids), done.finish_reason, done.stop_reason)
    assert found == (text, tokens, finish, stop)
    assert "".join(engine.stream("q", params)) == text
    assert all_free(engine)


def test_text_held_back_for_a_stop_string_comes_at_the_end() -> None:
    assert saying("a##").generate("q", SamplingParams(stop="###"))[0].text == "a##"
    assert list(saying("a##b").stream("q", SamplingParams(stop="###"))) == ["a", "##b"]


def test_half_a_character_at_the_length_limit_is_replaced() -> None:
    (done,) = saying("a😀").generate("q", SamplingParams(max_new_tokens=3))
    assert (done.text, done.finish_reason) == ("a\ufffd\ufffd", "length")
