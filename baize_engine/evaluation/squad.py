"""SQuAD's metric of an answer, as its official script (v1.1) defines it. Knows texts only."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII's: the script knows no other
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def measures(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """{"f1", "exact_match"}, each from 0 to 1 and the best over at least one right answer."""
    return {
        "f1": max(f1(prediction, answer) for answer in answers),
        "exact_match": max(float(words(prediction) == words(answer)) for answer in answers),
    }


def f1(prediction: str, answer: str) -> float:
    """The harmonic mean of precision and recall over words, each counting as often as it occurs; 0 if they share none."""
    predicted, right = words(prediction), words(answer)
    shared = (Counter(predicted) & Counter(right)).total()
    return 2 * shared / (len(predicted) + len(right)) if shared else 0.0


def words(text: str) -> list[str]:
    """The words that are compared: lower case, without punctuation and English articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()
