"""Tasks whose answer is mostly text of the prompt: code edits, summaries that quote, JSON echo, repetition; and free stories.

The texts are random combinations of the words below, so that who answers must copy and cannot remember: `random.Random` of
another seed gives texts that a model trained on this file has never seen. Knows no tokenizer and no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from demo_facts import CAPITALS, DAYS, SOUNDS

PEOPLE = ["Anna", "Tom", "Maria", "Peter", "Lucy", "Ben", "Clara", "David", "Emma", "Frank", "Nina", "Oscar"]
ANIMALS = list(SOUNDS)
CITIES = list(CAPITALS.values())
COLOURS = ["red", "blue", "green", "black", "white", "yellow", "brown", "orange"]
THINGS = ["stones", "maps", "apples", "books", "lamps", "boats", "keys", "hats", "coins", "letters", "chairs", "bells"]
PLACES = ["river", "bridge", "market", "garden", "tower", "harbour", "forest", "station"]
ADJECTIVES = ["old", "young", "small", "big", "slow", "fast", "rich", "poor", "cold", "dark"]
# {s}: who a sentence is about; the other slots are filled by `filled`
SENTENCES = [
    "{s} finds {n} {colour} {things} near the {place}.",
    "On {day} {s} goes to {city} with {person}.",
    "{person} gives {s} {n} {things}.",
    "In {city} {s} sees a {adjective} {animal}.",
    "{s} sleeps in the {adjective} {place} until {day}.",
    "Then {s} carries {n} {things} to {person}.",
    "After {n} days {s} leaves the {place}.",
    "Every {day} {s} waits for {person} at the {place}.",
    "The {adjective} {animal} follows {s} to {city}.",
    "Now {s} has {n} {things} and a {colour} {animal}.",
    "Near the {place} {s} meets {person} from {city}.",
    "{person} and {s} walk to the {adjective} {place}.",
    "{s} sells {n} {things} in {city}.",
    "Since {day} {s} is looking for the {colour} {things}.",
    "At the {place} {person} shows {s} a {adjective} {animal}.",
    "{s} hides the {colour} {things} from {person}.",
]
NAMES = [
    "total", "price", "count", "speed", "width", "height", "weight", "first", "last", "left", "right", "size",
    "start", "end", "value", "score", "level", "depth", "limit", "step", "rate", "length", "index", "result",
]  # fmt: skip
FUNCTIONS = ["add", "check", "read", "move", "draw", "find", "make", "sort", "send", "test"]
# {a} to {d}: names; {f}: a function; {n}, {m}: numbers
CODE = [
    "    {a} = {b} * {n}",
    "    {a} = {b} + {c}",
    "    {a} = {f}({b}, {n})",
    "    {a} = {f}({b})",
    "    print({a}, {b})",
    "    {a} -= {n}",
    "    if {a} > {n}:\n        {b} = {m}",
    "    if {a} == {b}:\n        return {c}",
    "    for {a} in range({n}):\n        {b} += {a}",
    "    while {a} < {b}:\n        {a} += {n}",
]
KEYS = [
    "name", "city", "day", "colour", "animal", "age", "count", "price", "open", "tags", "size", "friend",
    "owner", "level", "score", "home", "places", "numbers",
]  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A question of `kind`, one of KINDS, and its one right answer."""

    kind: str
    question: str
    answer: str


def number(rng: Random) -> int:
    """Of one to three digits, as often of each."""
    return rng.randrange(10 ** rng.choice([1, 2, 3]))


def filled(rng: Random, sentence: str, subject: str) -> str:
    """One of SENTENCES about `subject`."""
    text = sentence.format(
        s=subject, n=number(rng), colour=rng.choice(COLOURS), things=rng.choice(THINGS), place=rng.choice(PLACES),
        day=rng.choice(DAYS), city=rng.choice(CITIES), person=rng.choice(PEOPLE), adjective=rng.choice(ADJECTIVES),
        animal=rng.choice(ANIMALS),
    )  # fmt: skip
    return text[0].upper() + text[1:]


def subjects(rng: Random, count: int) -> list[str]:
    """Different people and animals."""
    return rng.sample(PEOPLE + [f"the {animal}" for animal in ANIMALS], count)


def paragraph(rng: Random, subject: str, sentences: int) -> str:
    """What happens to `subject`, which the first sentence names first."""
    first = [sentence for sentence in SENTENCES if sentence.startswith("{s}")]
    forms = [rng.choice(first), *rng.choices(SENTENCES, k=sentences - 1)]
    return " ".join(filled(rng, form, subject) for form in forms)


def code(rng: Random, names: list[str], lines: int) -> str:
    """A function over `names`, of about `lines` lines."""
    found = [f"def {rng.choice(FUNCTIONS)}_{rng.choice(THINGS)}({names[0]}, {names[1]}):"]
    while len(found) <= lines:
        a, b, c = rng.sample(names, 3)
        form = rng.choice(CODE).format(a=a, b=b, c=c, f=rng.choice(FUNCTIONS), n=number(rng), m=number(rng))
        if form not in found:
            found.append(form)
    return "\n".join([*found, f"    return {rng.choice(names)}"])


def json_value(rng: Random) -> object:
    words = rng.choice([PEOPLE, CITIES, COLOURS, ANIMALS, DAYS, THINGS])
    return rng.choice(
        [rng.choice(words), number(rng), rng.random() < 0.5, rng.sample(words, 3), [number(rng) for _ in range(3)]]
    )


def json_text(rng: Random, keys: int) -> str:
    return json.dumps({key: json_value(rng) for key in rng.sample(KEYS, keys)})


def code_edit(rng: Random, size: int) -> Task:
    names = rng.sample(NAMES, 5)
    old, new = rng.choice(names[:2]), names.pop()
    before = code(rng, names, size)
    return Task("code_edit", f"Rename `{old}` to `{new}` in:\n{before}", renamed(before, old, new))


def renamed(text: str, old: str, new: str) -> str:
    """`text` with the whole name `old` changed."""
    return re.sub(rf"\b{old}\b", new, text)


def quoting_summary(rng: Random, size: int) -> Task:
    """Of a text of two or three paragraphs."""
    about = subjects(rng, rng.choice([2, 3]))
    lines = [paragraph(rng, subject, max(1, size + rng.choice([-1, 0]))) for subject in about]
    chosen = rng.randrange(len(about))
    question = rng.choice(["Quote what the text says about {s}:", "What does this text say about {s}?"])
    return Task("quoting_summary", "\n".join([question.format(s=about[chosen]), *lines]), lines[chosen])


def json_echo(rng: Random, size: int) -> Task:
    """Of an object that comes back as it is, or with one value changed."""
    given = {key: json_value(rng) for key in rng.sample(KEYS, min(size + 1, len(KEYS)))}
    if rng.random() < 0.3:
        return Task("json_echo", f"Give back this JSON:\n{json.dumps(given)}", json.dumps(given))
    key, value = rng.choice(list(given)), rng.choice([number(rng), rng.choice(COLOURS)])
    question = f'Give back this JSON with "{key}" set to {json.dumps(value)}:\n{json.dumps(given)}'
    return Task("json_echo", question, json.dumps(given | {key: value}))


def repetition(rng: Random, size: int) -> Task:
    text = passage(rng, size)
    return Task("repetition", f"{rng.choice(['Repeat this:', 'Say this again:', 'Copy this text:'])}\n{text}", text)


def passage(rng: Random, size: int) -> str:
    """Prose, code, JSON, or a list of words."""
    kind = rng.randrange(4)
    if kind == 0:
        return paragraph(rng, *subjects(rng, 1), size)
    if kind == 1:
        return code(rng, rng.sample(NAMES, 4), size)
    if kind == 2:
        return json_text(rng, size + 1)
    return word_list(rng, 6 * size)


def word_list(rng: Random, words: int) -> str:
    """Different words in any order."""
    return " ".join(rng.sample(PEOPLE + ANIMALS + CITIES + COLOURS + THINGS + PLACES + ADJECTIVES + NAMES, words))


def free_story(rng: Random, size: int) -> Task:
    """A story that nobody can know: any is right."""
    one, other = subjects(rng, 2)
    story = " ".join(filled(rng, rng.choice(SENTENCES), rng.choice([one, other])) for _ in range(size + 2))
    return Task("free_story", f"Tell me about {one} and {other}.", story)


KINDS: dict[str, Callable[[Random, int], Task]] = {
    "code_edit": code_edit,
    "quoting_summary": quoting_summary,
    "json_echo": json_echo,
    "repetition": repetition,
    "free_story": free_story,
}
