"""What prompts of TydiQA say, as far as it is alike in all languages; golden/tydiqa.json has the texts."""

from __future__ import annotations

from dataclasses import astuple

from baize_engine.evaluation.tydiqa_wordings import WORDINGS

LANGUAGES = ["arabic", "bengali", "english", "finnish", "indonesian", "korean", "russian", "swahili", "telugu"]


def test_each_language_has_labels_and_instructions_of_its_own() -> None:
    assert sorted(WORDINGS) == LANGUAGES
    every = [text for wording in WORDINGS.values() for text in astuple(wording)]
    assert all(text == text.strip() and "\n" not in text for text in every)
    for wording in WORDINGS.values():
        assert [label[-1] for label in (wording.passage, wording.question, wording.answer)] == [":"] * 3
        assert len({*astuple(wording)}) == 5
    assert len({wording.gold for wording in WORDINGS.values()}) == len(LANGUAGES)
