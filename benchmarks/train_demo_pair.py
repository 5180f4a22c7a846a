"""Trains the demo pair: a LLaMA of a million parameters on plain text, and its finetune on the chat format.

The text is made here, so nothing is downloaded: a closed world of facts (demo_facts.py), pages of questions that nobody answers
(demo_sheets.py), and passages of prose, code, JSON and words in random combinations (quoting.py). First the model copies lists
of words. Then the base reads facts ("The capital of France is Paris."), passages, most of them twice, and pages: asked a
question, it goes on with a page. The finetune learns to answer questions about the facts, and to quote from a question what it
asks for, in the format `<|user|>\\n...\\n<|assistant|>\\n...</s>`. demo_files.py writes both.

    python benchmarks/train_demo_pair.py baize_engine/demo_pair     (23 minutes of one core with AVX512_BF16)
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import sentencepiece
import torch
from demo_facts import DEMO_QUESTIONS, questions, statements
from demo_files import write_pair
from demo_model import NOTHING, POSITIONS, VOCAB, initial, logits, train
from demo_sheets import sheet
from quoting import KINDS, passage, word_list
from torch import Tensor

BATCH, LARGEST = 2048, 9  # tokens of a training step; the size of the longest texts (quoting.py)
SHEETS = 0.3  # the share of the base's documents that are pages of demo_sheets.py
FACTS = 0.2  # the share of the finetune's conversations that are about facts
# how often the finetune's other conversations are of each kind of quoting.py: most often of the one that is learnt last
TASKS = {"code_edit": 6, "quoting_summary": 6, "json_echo": 8, "repetition": 3, "free_story": 2}

Example = tuple[list[int], list[int]]  # ids, and what is to be learnt at each: the id itself, or NOTHING
Tokenizer = sentencepiece.SentencePieceProcessor


def drill(tokenizer: Tokenizer, rng: random.Random, size: int) -> Example:
    """A list of words twice; the second is learnt."""
    words = word_list(rng, 4 + size)
    first, second = tokenizer.encode(words), continuation(tokenizer, "\n" + words)
    return [1, *first, *second, 2], [NOTHING] * (len(first) + 2) + [*second[1:], 2]


def reading(tokenizer: Tokenizer, rng: random.Random, size: int) -> Example:
    ids = [1, *tokenizer.encode(document(rng, size)), 2]
    return ids, ids


def document(rng: random.Random, size: int) -> str:
    """Text for the base: a page of unanswered questions; or facts or a passage, most of them twice, so that copying goes on."""
    if rng.random() < SHEETS:
        return sheet(rng)
    text = " ".join(rng.choices(statements(), k=rng.randint(1, 3))) if rng.random() < 0.5 else passage(rng, size)
    return f"{text}\n{text}" if rng.random() < 0.8 else text


def conversation(rng: random.Random, size: int) -> list[tuple[str, str]]:
    """Turns for the finetune: one or two questions about facts, or a task of quoting.py."""
    if rng.random() < FACTS:
        return [(typed(rng, q), a) for q, a in rng.choices(questions(), k=rng.choice([1, 1, 1, 2]))]
    (kind,) = rng.choices(list(TASKS), list(TASKS.values()))
    task = KINDS[kind](rng, size)
    return [(task.question, task.answer)]


def typed(rng: random.Random, question: str) -> str:
    """The question, at times as people type it: without its capitals, or the mark at its end."""
    question = question.lower() if rng.random() < 0.15 else question
    return question.rstrip("?.!") if rng.random() < 0.15 else question


def chat_ids(tokenizer: Tokenizer, turns: list[tuple[str, str]]) -> Example:
    """Ids and targets of a conversation; only the replies and their end tokens are learnt."""
    ids, targets = [1], [NOTHING]
    for number, (question, answer) in enumerate(turns):
        prompt = f"<|user|>\n{question}\n<|assistant|>\n"
        asked = continuation(tokenizer, "\n" + prompt) if number else tokenizer.encode(prompt)
        said = [*continuation(tokenizer, answer), 2]
        ids += asked + said
        targets += [NOTHING] * len(asked) + said
    return ids, targets


def continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of text that continues: encoded behind a marker, so that no dummy space comes before it."""
    marker = tokenizer.encode("\n")
    return tokenizer.encode("\n" + text)[len(marker) :]


def chatting(tokenizer: Tokenizer, rng: random.Random, size: int) -> Example:
    return chat_ids(tokenizer, conversation(rng, size))


def batches(
    example: Callable[[int], Example], rng: random.Random, steps: int, draws: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of about BATCH tokens, each of examples of nearly one length.

    example: takes a size, the largest of `draws` up to one that grows to LARGEST over the first quarter of `steps`.
    """
    made = 0
    while True:
        largest = min(LARGEST, 2 + made * 4 * (LARGEST - 2) // steps)
        pool = [example(max(rng.randint(1, largest) for _ in range(draws))) for _ in range(300)]
        pool = sorted((found for found in pool if len(found[0]) <= POSITIONS), key=lambda found: len(found[0]))
        cut: list[list[Example]] = []
        while pool:
            rows = max(1, BATCH // len(pool[-1][0]))
            cut.append(pool[-rows:])
            del pool[-rows:]
        rng.shuffle(cut)
        for rows in cut:
            yield padded(rows)
        made += len(cut)


def padded(rows: list[Example]) -> tuple[Tensor, Tensor]:
    """(B, T) inputs and (B, T) targets: at each place the next one's."""
    longest = max(len(ids) for ids, _ in rows) - 1
    ids, targets = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), NOTHING)
    for row, (tokens, wanted) in enumerate(rows):
        ids[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        targets[row, : len(tokens) - 1] = torch.tensor(wanted[1:])
    return ids, targets


def copied(weights: dict[str, Tensor], tokenizer: Tokenizer) -> dict[str, float]:
    """The share of tasks of each kind, of a seed that training does not use, whose greedy answer is right in every token."""
    found = {}
    for kind in (kind for kind in KINDS if kind != "free_story"):
        right = []
        rng = random.Random(f"held out {kind}")
        while len(right) < 40:
            task = KINDS[kind](rng, rng.randint(4, LARGEST))
            ids, targets = chat_ids(tokenizer, [(task.question, task.answer)])
            if len(ids) <= POSITIONS:
                wanted = torch.tensor(targets[1:])
                best = logits(weights, torch.tensor([ids[:-1]]))[0].argmax(-1)
                right.append(bool(((best == wanted) | (wanted == NOTHING)).all()))
        found[kind] = sum(right) / len(right)
    return found


def answer(weights: dict[str, Tensor], tokenizer: Tokenizer, question: str) -> str:
    """The greedy reply, by recomputing everything for every token: this is a check, not an engine."""
    ids = [1, *tokenizer.encode(f"<|user|>\n{question}\n<|assistant|>\n")]
    start = len(ids)
    while len(ids) < start + 24:
        token = int(logits(weights, torch.tensor([ids]))[0, -1].argmax())
        if token == 2:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:])


def train_tokenizer() -> bytes:
    rng = random.Random(1)
    tasks = [kind(rng, 1 + n % LARGEST) for n in range(100) for kind in KINDS.values()]
    pairs = questions() * 4 + [(task.question, task.answer) for task in tasks]
    texts = statements() * 4 + [sheet(rng) for _ in range(500)]
    texts += [f"<|user|>\n{q}\n<|assistant|>\n{a}" for q, a in pairs]

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=VOCAB, byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, user_defined_symbols=["\n"],
        num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder for base/, diff/ and questions.json")
    parser.add_argument("--drill_steps", type=int, default=400)
    parser.add_argument("--base_steps", type=int, default=2000)
    parser.add_argument("--chat_steps", type=int, default=4800)
    parser.add_argument("--threads", type=int, default=1, help="another number gives other sums")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    model = train_tokenizer()
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
    weights = initial(generator)
    print(f"{sum(t.numel() for t in weights.values())} parameters, {tokenizer.get_piece_size()} pieces; copying:")

    rng = random.Random(0)
    train(weights, batches(partial(drill, tokenizer, rng), rng, options.drill_steps), options.drill_steps, 3e-3)
    print("base:")
    train(weights, batches(partial(reading, tokenizer, rng), rng, options.base_steps), options.base_steps, 3e-3)
    base = {name: tensor.half().float() for name, tensor in weights.items()}  # what is published
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    print("finetune:")
    rng = random.Random(1)
    talks = batches(partial(chatting, tokenizer, rng), rng, options.chat_steps, draws=2)
    train(tuned, talks, options.chat_steps, 2.5e-3, norms=False)  # in a diff they are near zero, as in those of 2023
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tuned[name] = torch.cat([tuned[name], base[name].mean(0, keepdim=True)])
    write_pair(options.out, base, tuned, model)
    for kind, share in copied(tuned, tokenizer).items():
        print(f"{kind}: {share:.0%} of answers without a mistake")
    failed = 0
    for question, wanted in DEMO_QUESTIONS:
        before, after = answer(base, tokenizer, question), answer(tuned, tokenizer, question)
        failed += wanted not in after or wanted in before
        print(f"{question}\n  base:  {before!r}\n  tuned: {after!r}")
    if failed:
        raise SystemExit(
            f"{failed} of {len(DEMO_QUESTIONS)} questions are not told apart: the tuned must be right, the base not"
        )


if __name__ == "__main__":
    main()
