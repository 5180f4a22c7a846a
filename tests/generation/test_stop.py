"""Stop ids and stop strings: cut before the string, whatever the pieces; nothing shown that might still be cut."""

from __future__ import annotations

import random

import pytest

from baize_engine.generation.params import SamplingParams
from baize_engine.generation.stop import StopScanner, stop_token_ids


def scan(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    scanner = StopScanner(stops)
    text = "".join(scanner.push(piece) for piece in pieces)
    return text + scanner.flush(), scanner.matched


def test_ids_are_the_models_and_the_requests() -> None:
    assert stop_token_ids(SamplingParams(stop_token_ids=[7]), (2,)) == {2, 7}
    assert stop_token_ids(SamplingParams(stop_token_ids=[7], ignore_eos=True), (2,)) == {7}


@pytest.mark.parametrize(
    ("stops", "pieces", "wanted"),
    [
        (["###"], ["a#", "#", "#b"], ("a", "###")),
        (["###"], ["a##"], ("a##", None)),
        (["\n\n"], ["x\n", "y\n\nz"], ("x\ny", "\n\n")),
        (["aab"], ["aa", "ab"], ("a", "aab")),
        (["abc", "b"], ["a", "b", "c"], ("a", "b")),
        (["abc", "b"], ["abc"], ("a", "b")),
        (["bc", "abc"], ["xa", "bc"], ("x", "abc")),
        ([], ["a", "b"], ("ab", None)),
        (["é"], ["caf", "é", "!"], ("caf", "é")),
    ],
)
def test_cuts_before_the_first_completed_string(stops: list[str], pieces: list[str], wanted: tuple) -> None:
    assert scan(stops, pieces) == wanted


def test_holds_back_only_what_may_become_a_stop_string() -> None:
    scanner = StopScanner(["<end>"])
    assert scanner.push("text <") == "text "
    assert scanner.push("en") == ""
    assert scanner.push("try> <e") == "<entry> "
    assert scanner.push("nd> more") == ""
    assert scanner.matched == "<end>"
    assert scanner.push("ignored") == scanner.flush() == ""


@pytest.mark.parametrize(
    ("stops", "pieces", "before", "wanted"),
    [
        (["xy"], ["x", "y", "xy"], 1, ("", "xy")),  # begins in the piece that may not be the end
        (["xy"], ["x", "y", "xy"], 2, ("xy", "xy")),  # complete there: text
        (["xx"], ["x", "x", "x"], 2, ("x", "xx")),  # which the next begins in
        (["b", "abc"], ["ab", "z"], 1, ("abz", None)),  # held for the other, and no match later
        (["b", "abc"], ["ab", "c"], 1, ("", "abc")),
        (["b"], ["ab", "b"], 1, ("ab", "b")),
        (["a"], ["a", "a"], 2, ("aa", None)),
    ],
)
def test_what_is_complete_where_it_may_not_end_is_text(
    stops: list[str], pieces: list[str], before: int, wanted: tuple
) -> None:
    scanner = StopScanner(stops)
    shown = "".join(scanner.push(piece, ends=number >= before) for number, piece in enumerate(pieces))
    shown += "" if scanner.matched else scanner.flush()
    assert (shown, scanner.matched) == wanted


def test_the_cut_does_not_depend_on_the_pieces() -> None:
    rng = random.Random(0)
    for _ in range(400):
        text = "".join(rng.choices("ab", k=rng.randint(0, 24)))
        stops = ["".join(rng.choices("ab", k=rng.randint(2, 5))) for _ in range(rng.randint(1, 3))]
        cuts = sorted(rng.choices(range(len(text) + 1), k=4))
        pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert scan(stops, pieces) == scan(stops, [text]) == scan(stops, list(text))
