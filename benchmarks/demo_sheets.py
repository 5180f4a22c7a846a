"""Plain text for the demo's base in which questions stand and nobody answers: quizzes, tests, forums, interviews, data files.

A base that has read it takes a question in the chat format for such a page, and goes on with the page, as the bases of 2023
did. The headings look like that format's, but with other words: the base knows the shape, and neither the format nor a reply.
Knows no tokenizer and no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from string import ascii_lowercase

from demo_facts import COLOURS, DAYS, KINDS, OPPOSITES, SOUNDS, TALK, YOUNG
from quoting import ADJECTIVES, CITIES, NAMES, PEOPLE, PLACES, THINGS, paragraph, subjects
from quoting import COLOURS as PAINTS

HEADINGS = [
    "page", "sheet", "lesson", "exercise", "homework", "forum", "topic", "post", "quiz", "round", "card", "notes", "part",
    "section", "chapter", "title", "body", "question", "item", "entry", "row", "file", "log", "data", "test", "class",
]  # fmt: skip
# What follows a question on a page of each sort. {one}, {other}: people; the other slots by `spread`
TESTS = [
    "Write your answer in one word. Each right answer is worth {n} points.",
    "Write your answer in one word and hand in the sheet after {m} minutes.",
]
WORKSHEETS = [
    "Look at the picture, then colour the animal {colour}. Show it to the class.",
    "Draw the animal and colour it {colour}. Then show it to the class and turn the page.",
]
FORUMS = [
    "My daughter asked me this on {day} and I had no idea. Can anyone help?",
    "My son asked me this on {day} and I had no idea. Does any user of the forum know?",
]
LESSONS = [
    "The teacher waits for an answer. {one} looks out of the window, and {other} laughs.",
    "Nobody says a word. The assistant shuts the door, and {one} looks out of the window.",
]
INTERVIEWS = [
    "I am {one}. I sell {things} near the {place} in {city}. And who are you?",
    "I am {one} from {city}. I sell {things}, and {other} is my assistant. And who are you?",
]
OPENINGS = [
    "A list of records:",
    "The records as JSON:",
    'One more file, with "{key}" for each:',
    "This JSON has {n} lines:",
]
WORDS = {
    "name": PEOPLE, "friend": PEOPLE, "owner": PEOPLE, "city": CITIES, "home": CITIES, "day": DAYS, "colour": PAINTS,
    "animal": list(SOUNDS), "open": [True, False],
}  # fmt: skip
RECORD_KEYS = [*WORDS, "age", "count", "price", "size", "level", "score"]


def sheet(rng: Random) -> str:
    """A page, of one sort of text, in one or two parts with headings."""
    part = rng.choice([quiz, records, story, *(commented(kind) for kind in COMMENTS)])
    return "\n".join(part(rng) for _ in range(rng.choice([1, 1, 1, 2])))


def heading(rng: Random) -> str:
    words = rng.choice([HEADINGS, HEADINGS, PEOPLE, CITIES, DAYS, NAMES, THINGS, PLACES, ADJECTIVES, None])
    word = "".join(rng.choices(ascii_lowercase, k=rng.randint(2, 9))) if words is None else rng.choice(words)
    return f"<|{word}|>"


def headed(rng: Random, first: str, then: str) -> str:
    return f"{heading(rng)}\n{first}\n{heading(rng)}\n{then}"


def asked(rng: Random, facts: dict[str, str], count: int) -> list[str]:
    """Different questions of one sort about `facts`; none names the answer to another."""
    forms = next(forms for found, _, forms, _ in KINDS if found == facts)
    form = rng.choice(forms)
    while True:
        keys = rng.sample(list(facts), count)
        if not {facts[key] for key in keys} & set(keys):
            return [form.format(k=key) for key in keys]


def quiz(rng: Random) -> str:
    """Questions and more questions."""
    facts = rng.choice([KINDS[0][0], KINDS[0][0], COLOURS])
    first, *others = asked(rng, facts, rng.randint(4, 5))
    return headed(rng, first, "\n".join(others))


def records(rng: Random) -> str:
    """Lines of JSON with the same keys."""
    keys = rng.sample(RECORD_KEYS, rng.randint(2, 3))
    lines = [json.dumps({key: simple(rng, key) for key in keys}) for _ in range(rng.randint(3, 5))]
    opening = rng.choice(OPENINGS).format(key=keys[0], n=rng.randint(2, 99))
    return headed(rng, f"{opening}\n{lines[0]}", "\n".join(lines[1:]))


def simple(rng: Random, key: str) -> object:
    return rng.choice(WORDS[key]) if key in WORDS else rng.randrange(100)


def story(rng: Random) -> str:
    """A story that goes on."""
    (subject,) = subjects(rng, 1)
    return headed(rng, paragraph(rng, subject, rng.randint(1, 2)), paragraph(rng, subject, rng.randint(2, 3)))


def spread(rng: Random, text: str) -> str:
    one, other = rng.sample(PEOPLE, 2)
    return text.format(
        one=one, other=other, n=rng.randint(2, 5), m=rng.choice([10, 20, 30]), colour=rng.choice(PAINTS),
        day=rng.choice(DAYS), place=rng.choice(PLACES), city=rng.choice(CITIES), things=rng.choice(THINGS),
    )  # fmt: skip


def talk(rng: Random) -> str:
    return rng.choice(TALK[:5])[0]


def about(facts: dict[str, str]) -> Callable[[Random], str]:
    return lambda rng: asked(rng, facts, 1)[0]


COMMENTS = [
    (about(OPPOSITES), TESTS),
    (about(SOUNDS), WORKSHEETS),
    (about(YOUNG), FORUMS),
    (about(dict(zip(DAYS, DAYS[1:] + DAYS[:1], strict=True))), LESSONS),
    (talk, INTERVIEWS),
]


def commented(kind: tuple[Callable[[Random], str], list[str]]) -> Callable[[Random], str]:
    """A question, and what stands below it in place of an answer."""
    question, forms = kind
    return lambda rng: headed(rng, question(rng), spread(rng, rng.choice(forms)))
