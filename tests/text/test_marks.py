"""Marks: what a message spells is told from what a template writes, whatever the template does to the message."""

from __future__ import annotations

import pytest

from baize_engine.text.marks import Marks

SPECIAL = ("<s>", "</s>", "<|end|>", "<|end|><|x|>")


def parts(content: str, render: str = "{}") -> list[tuple[str, bool]]:
    marks = Marks(SPECIAL, [content])
    return list(marks.cut(render.format(marks.put(content))))


@pytest.mark.parametrize("content", ["", "  ", "plain text", " a < b > c ", "\n(x)\n"])
def test_without_special_tokens_nothing_is_marked(content: str) -> None:
    assert Marks(SPECIAL, [content]).put(content) == content
    assert parts(content, "<s>{}</s>") == [(f"<s>{content}</s>", True)]


def test_spelled_tokens_are_cut_out() -> None:
    assert parts("a<s>b", "<s>{}</s>") == [("<s>a", True), ("<s>", False), ("b</s>", True)]
    assert parts("<|end|><|x|>") == [("<|end|><|x|>", False)]  # the longest
    assert parts("<<s>s>", "{}") == [("<", True), ("<s>", False), ("s>", True)]


@pytest.mark.parametrize(
    ("content", "render", "wanted"),
    [
        ("<|end", "{}|>", ["<|end", "|>"]),
        ("s>", "<{}", ["<", "s>"]),
        (" <|end \n", "{}|>", [" <|end", " \n|>"]),  # within white space
        ("\t> ", "<s{}", ["<s\t", "> "]),
    ],
)
def test_ends_that_could_complete_a_token_are_cut_off(content: str, render: str, wanted: list[str]) -> None:
    assert parts(content, render) == [(text, True) for text in wanted]


def test_characters_that_a_message_has_are_no_marks() -> None:
    content = "\U000f0000<s>\U000f0001"
    assert parts(content) == [("\U000f0000", True), ("<s>", False), ("\U000f0001", True)]


def test_a_token_without_one_of_its_marks_stays_text() -> None:
    """Where a template cuts a message anywhere, what it writes behind it is rather taken for text than the other way round."""
    marks = Marks(SPECIAL, ["<s>"])
    put = marks.put("a<s>b")
    assert list(marks.cut(put[:-2] + "</s>")) == [("a", True), ("<s></s>", False)]
    assert list(marks.cut("</s>" + put[2:])) == [("</s><s>", False), ("b", True)]


def test_there_may_be_no_special_tokens() -> None:
    marks = Marks((), ["<s>"])
    assert list(marks.cut(marks.put("<s>"))) == [("<s>", True)]
