"""The index of a text's end against a search through the whole text."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up import at_leisure

from baize_engine.generation.speculation.ngram_index import LEAST, REACH, NgramIndex

TEXTS = st.integers(1, 4).flatmap(lambda ids: st.lists(st.integers(0, ids - 1), max_size=REACH))


def common_end(text: list[int], place: int) -> int:
    """How many of the ids before `place` are also the last of the text."""
    length = 0
    while length < place and text[place - 1 - length] == text[-1 - length]:
        length += 1
    return length


def longest_match(text: list[int]) -> tuple[int, int]:
    """(place, length) of the longest match, the latest of equally long ones; (0, 0) if there is none of LEAST or more."""
    length, place = max(((common_end(text, place), place) for place in range(len(text))), default=(0, 0))
    return (place, length) if length >= LEAST else (0, 0)


def match(index: NgramIndex) -> tuple[int, int]:
    return index.start, index.length


@settings(at_leisure, max_examples=400)
@given(TEXTS)
@example([0] * REACH)
@example([0, 1, 2, 0, 1, 3, 0, 1])  # two matches of equal length
@example([1, 2, 3, 4, 2, 3, 4, 1, 2, 3, 4])  # a longer one before a later one
def test_the_match_is_the_longest_and_the_latest_of_those(text: list[int]) -> None:
    index = NgramIndex()
    for end, token in enumerate(text, 1):
        index.extend([token])
        assert match(index) == longest_match(text[:end])


@settings(at_leisure, max_examples=100)
@given(TEXTS, st.integers(0, REACH))
def test_pieces_make_the_index_of_the_whole(text: list[int], cut: int) -> None:
    whole, parts = NgramIndex(), NgramIndex()
    whole.extend(text)
    parts.extend(text[:cut])
    parts.extend([])
    parts.extend(text[cut:])
    assert (parts.ids, match(parts)) == (text, match(whole))
    assert parts.continuation(9) == whole.continuation(9)


@settings(at_leisure, max_examples=200)
@given(TEXTS, st.integers(0, 40))
def test_what_continues_a_match_is_text_and_repeats_its_period(text: list[int], count: int) -> None:
    index = NgramIndex()
    index.extend(text)
    place, length = longest_match(text)
    expected = list(text)
    for _ in range(count if length else 0):
        expected.append(expected[place + len(expected) - len(text)])  # also what has just been appended
    assert index.continuation(count) == expected[len(text) :]


def test_a_search_ends_after_so_many_places_but_what_it_finds_matches() -> None:
    rng = random.Random(5)
    text = [rng.randrange(2) for _ in range(20 * REACH)]
    index = NgramIndex()
    longest = 0
    for end, token in enumerate(text, 1):
        index.extend([token])
        if index.length:
            assert index.start < end
            assert LEAST <= index.length <= common_end(text[:end], index.start)
            longest = max(longest, index.length)
    assert longest > 10


@pytest.mark.parametrize("text", [[], [7], [7, 8, 9]])
def test_no_match_no_continuation(text: list[int]) -> None:
    index = NgramIndex()
    index.extend(text)
    assert (match(index), index.continuation(5)) == ((0, 0), [])
