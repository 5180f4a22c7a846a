"""Exact match without regard to case and punctuation, as Hugging Face's `evaluate` had it in 2023. Knows texts only."""

from __future__ import annotations

import string

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(prediction: str, gold: str) -> bool:
    """Whether two texts are equal in lower case and without ASCII's punctuation; spaces stay.

    So "1.5" is 15 and "-3" is 3, and texts of punctuation alone are equal if they have the same spaces: in BBH's
    dyck_languages, whose answers are brackets, every answer with the right number of them is right. The card was made so;
    later versions of the metric want such texts to be equal as they are.
    """
    return _plain(prediction) == _plain(gold)


def _plain(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)
