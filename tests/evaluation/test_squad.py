"""SQuAD's F1 and exact match, on values worked out by hand from the rules of its script."""

from __future__ import annotations

import pytest

from baize_engine.evaluation import squad


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  quick\tBrown fox.", ["quick", "brown", "fox"]),
        ("an A-Team's theory", ["ateams", "theory"]),  # punctuation goes first, so "A-Team" hides no article
        ("a.b the", ["ab"]),
        ("«Le Monde»، ১৯৭১।", ["«le", "monde»،", "১৯৭১।"]),  # only ASCII's punctuation is known
        ("the a an ...", []),
        ("日本 a語", ["日本", "a語"]),  # 語 is of the word: no boundary
    ],
)
def test_words_that_are_compared(text: str, words: list[str]) -> None:
    assert squad.words(text) == words


@pytest.mark.parametrize(
    ("prediction", "answer", "f1"),
    [
        ("the Eiffel Tower", "Eiffel tower!", 1.0),
        ("tower of Eiffel", "Eiffel Tower", 0.8),  # precision 2/3, recall 1
        ("go go", "go", 2 / 3),  # a word counts as often as it occurs: precision 1/2
        ("go", "go go stop", 0.5),  # precision 1, recall 1/3
        ("Paris", "London", 0.0),
        ("", "London", 0.0),
        ("the", "a", 0.0),  # nothing is left of either: no shared word, though an exact match
    ],
)
def test_f1(prediction: str, answer: str, f1: float) -> None:
    assert squad.f1(prediction, answer) == pytest.approx(f1)


def test_the_best_answer_counts_for_each_measure() -> None:
    assert squad.measures("the Tower of Eiffel", ["London", "Eiffel tower"]) == {"f1": 0.8, "exact_match": 0.0}
    assert squad.measures("tower, Eiffel", ["Eiffel tower", "The Tower Eiffel"]) == {"f1": 1.0, "exact_match": 1.0}
    assert squad.measures("the", ["a"]) == {"f1": 0.0, "exact_match": 1.0}
