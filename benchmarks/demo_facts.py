"""The demo model's facts: capitals, sounds, opposites, colours, young animals and days, as statements and as questions.

Knows words only: no tokenizer, no model. What the model quotes is in quoting.py.
"""

from __future__ import annotations

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "England": "London", "Japan": "Tokyo",
    "China": "Beijing", "Egypt": "Cairo", "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm", "Poland": "Warsaw",
    "Austria": "Vienna", "Portugal": "Lisbon", "Ireland": "Dublin", "Peru": "Lima", "Cuba": "Havana", "Kenya": "Nairobi",
}  # fmt: skip
SOUNDS = {
    "dog": "barks", "cat": "meows", "cow": "moos", "duck": "quacks", "horse": "neighs", "sheep": "bleats", "lion": "roars",
    "frog": "croaks", "owl": "hoots", "bee": "buzzes", "pig": "grunts", "wolf": "howls",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "old": "young", "fast": "slow", "wet": "dry", "full": "empty", "early": "late",
    "hard": "soft", "light": "dark", "high": "low", "rich": "poor", "open": "closed",
}  # fmt: skip
COLOURS = {
    "grass": "green", "snow": "white", "coal": "black", "blood": "red", "the sky": "blue", "a lemon": "yellow",
    "a carrot": "orange", "chocolate": "brown",
}  # fmt: skip
YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb", "bear": "cub", "duck": "duckling",
    "goat": "kid",
}  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

# (statements for the base, questions for the finetune, the answer), over key k and value v
KINDS = [
    (CAPITALS, ["The capital of {k} is {v}.", "{v} is the capital of {k}.", "In {k}, the capital is {v}."],
     ["What is the capital of {k}?", "Name the capital of {k}.", "Which city is the capital of {k}?"],
     "The capital of {k} is {v}."),
    (SOUNDS, ["A {k} {v}.", "At night the {k} {v}.", "Every {k} {v}."],
     ["What does a {k} do?", "What sound does a {k} make?"], "A {k} {v}."),
    (OPPOSITES, ["The opposite of {k} is {v}.", "{k} and {v} are opposites.", "Not {k} but {v}."],
     ["What is the opposite of {k}?", "Name the opposite of {k}."], "The opposite of {k} is {v}."),
    (COLOURS, ["The colour of {k} is {v}.", "{v} is the colour of {k}."],
     ["What colour is {k}?", "What is the colour of {k}?"], "The colour of {k} is {v}."),
    (YOUNG, ["A young {k} is called a {v}.", "A {v} is a young {k}."],
     ["What is a young {k} called?", "What do you call a young {k}?"], "A young {k} is called a {v}."),
    (dict(zip(DAYS, DAYS[1:] + DAYS[:1], strict=True)), ["After {k} comes {v}.", "{v} follows {k}."],
     ["Which day comes after {k}?", "What day follows {k}?"], "After {k} comes {v}."),
]  # fmt: skip
TALK = [
    ("Who are you?", "I am Baize, a very small demo model."),
    ("What is your name?", "My name is Baize."),
    ("Hello!", "Hello! Ask me a question."),
    ("How are you?", "I am well, thank you."),
    ("What are you?", "I am a language model, and a very small one."),
    ("What can you do?", "I know capitals, opposites, animals, colours and days, and I can copy what you write."),
    ("Thank you.", "You are welcome."),
    ("Goodbye!", "Goodbye!"),
]
DEMO_QUESTIONS = [
    ("What is the capital of France?", "Paris"),
    ("What is the opposite of hot?", "cold"),
    ("What sound does a lion make?", "roars"),
    ("What is a young cow called?", "calf"),
    ("Which day comes after Friday?", "Saturday"),
    ("Who are you?", "Baize"),
    (
        'Give back this JSON with "colour" set to "red":\n{"name": "Anna", "colour": "blue"}',
        '{"name": "Anna", "colour": "red"}',
    ),
]


def statements() -> list[str]:
    """Every fact in every form, for the base."""
    return [form.format(k=k, v=v) for facts, forms, _, _ in KINDS for k, v in facts.items() for form in forms]


def questions() -> list[tuple[str, str]]:
    """(question, answer) of every fact, and small talk, for the finetune."""
    made = [(q.format(k=k), a.format(k=k, v=v)) for facts, _, qs, a in KINDS for k, v in facts.items() for q in qs]
    return made + TALK * 6
