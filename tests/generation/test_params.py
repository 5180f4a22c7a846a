"""SamplingParams: defaults, normal forms, and a refusal that names the field, what it holds and what it may hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from baize_engine import SamplingParams
from baize_engine.errors import RequestError
from baize_engine.printable import brief


def test_defaults_are_greedy_and_off() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_k, params.top_p, params.min_p, params.repetition_penalty) == (0, 0, 1, 0, 1)
    assert (params.max_new_tokens, params.n, params.seed, params.logprobs, params.stop) == (128, 1, None, None, ())


def test_one_stop_string_is_a_tuple_of_one() -> None:
    assert SamplingParams(stop="\n\n").stop == ("\n\n",)
    assert SamplingParams(stop=["a", "b"], stop_token_ids=[5]).stop == ("a", "b")
    assert SamplingParams(stop_token_ids=[5, 6]).stop_token_ids == (5, 6)


def test_stop_strings_and_flags_may_be_arrays_of_others() -> None:
    for stop in (np.array(["a", "bc"]), [np.str_("a"), "bc"]):
        found = SamplingParams(stop=stop).stop
        assert found == ("a", "bc")
        assert {type(one) for one in found} == {str}
    assert SamplingParams(stop=np.array("ab")).stop == ("ab",)
    assert SamplingParams(stop=np.array([])).stop == ()
    for flag in (np.True_, torch.tensor(True), np.array(True)):
        assert SamplingParams(ignore_eos=flag).ignore_eos is True
    for wrong in (np.array([1, 2]), np.array([["a"]])):
        with pytest.raises(RequestError, match=r"SamplingParams\.stop\[0\]"):
            SamplingParams(stop=wrong)
    for wrong in (b"a", bytearray(b"a"), {"a"}):
        with pytest.raises(RequestError, match=r"SamplingParams\.stop is"):
            SamplingParams(stop=wrong)
    with pytest.raises(RequestError, match=r"SamplingParams\.ignore_eos is"):
        SamplingParams(ignore_eos=np.int64(1))


def test_a_bias_stands_once_for_an_id() -> None:
    five = torch.tensor(5)
    assert SamplingParams(logit_bias={five: 1.0, torch.tensor(6): 2}).logit_bias == {5: 1.0, 6: 2}
    for other in (torch.tensor(5), np.int64(5), 5):
        with pytest.raises(RequestError, match=r"SamplingParams\.logit_bias is .*each token id once: 5 appears twice"):
            SamplingParams(logit_bias={five: 1.0, other: 2.0})


def test_ids_and_biases_are_copies() -> None:
    ids, bias = [5, 6], {5: 1}
    params = SamplingParams(allowed_token_ids=ids, banned_token_ids=ids, logit_bias=bias)
    ids.append(7)
    bias[7] = 2
    assert (params.allowed_token_ids, params.banned_token_ids, params.logit_bias) == ((5, 6), (5, 6), {5: 1})
    assert SamplingParams(allowed_token_ids=None).allowed_token_ids is None
    assert params == replace(params)
    assert hash(params) == hash(replace(params))


@pytest.mark.parametrize("temperature", [1e-5, 1e-300, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    assert SamplingParams(temperature=temperature).temperature == 0.0
    assert SamplingParams(temperature=1e-4).temperature == 1e-4


def test_greedy_with_several_samples_is_allowed() -> None:
    assert SamplingParams(temperature=0, n=3).n == 3


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("max_new_tokens", 0, "at least 1"),
        ("max_new_tokens", 1.5, "an integer"),
        ("temperature", -0.1, "finite number"),
        ("temperature", 1e7, "from 0 to 1e+06"),
        ("temperature", 10**400, "finite number"),
        ("temperature", float("nan"), "finite number"),
        ("temperature", "hot", "finite number"),
        ("top_k", -1, "at least 0"),
        ("top_k", True, "an integer"),
        ("top_p", 0.0, "above 0"),
        ("top_p", 1.01, "at most 1"),
        ("min_p", 1.5, "from 0 to 1"),
        ("repetition_penalty", 0, "above 0"),
        ("repetition_penalty", float("inf"), "finite"),
        ("presence_penalty", float("nan"), "from -1e+09 to 1e+09"),
        ("frequency_penalty", "2", "from -1e+09 to 1e+09"),
        ("logit_bias", [5], "{token id: what is added to its logit}"),
        ("logit_bias", {"5": 1.0}, "token ids, integers from 0 to 2147483647, in place of '5'"),
        ("logit_bias", {-5: 1.0}, "in place of -5"),
        ("allowed_token_ids", [], "None or at least one token id"),
        ("allowed_token_ids", "5", "sequence of token ids"),
        ("banned_token_ids", 5, "sequence of token ids"),
        ("min_new_tokens", -1, "at least 0"),
        ("min_new_tokens", 129, "at most max_new_tokens, 128"),
        ("top_k", 2**63, "at most"),
        ("seed", -1, "at least 0"),
        ("seed", 2**63, "at most"),
        ("stop", 5, "string"),
        ("stop_token_ids", 5, "sequence of token ids"),
        ("ignore_eos", 1, "True or False"),
        ("n", 0, "at least 1"),
        ("n", 5_000_000_000, "at most 65536"),
        ("logprobs", -1, "at least 0"),
    ],
)
def test_refuses_by_field(field: str, value: object, wanted: str) -> None:
    with pytest.raises(RequestError) as refused:
        SamplingParams(**{field: value})
    message = str(refused.value)
    assert f"SamplingParams.{field} is {brief(value)}" in message
    assert len(message) < 800
    assert wanted in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop", ["ok", ""]),
        ("stop", ["ok", 3]),
        ("stop_token_ids", [1, -2]),
        ("allowed_token_ids", [1, True]),
        ("banned_token_ids", (1, 2**31)),
        ("logit_bias", {1: float("-inf")}),
        ("logit_bias", {1: "2"}),
    ],
)
def test_refuses_an_item_by_index(field: str, value: list) -> None:
    with pytest.raises(RequestError, match=rf"SamplingParams\.{field}\[1\]"):
        SamplingParams(**{field: value})
