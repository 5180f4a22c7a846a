"""Ranks answers to a question by the probability that the model gives them.

    python examples/score_and_rank.py
    python examples/score_and_rank.py "Which planet is the largest?" Jupiter. Saturn. Mars. --model baize-13b/

Longer answers tend to be less probable. The last column, the log-probability divided by the bytes, allows for that.
"""

import argparse
from math import exp, log

from baize_engine import Engine

ANSWERS = [f"The capital of France is {city}." for city in ("Rome", "Madrid", "Paris", "Vienna")]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("question", nargs="?", help="default: the capital of France")
parser.add_argument("answers", nargs="*", help="of the question")
parser.add_argument("--model", default="baize-demo", help="default: what recover_and_chat.py writes")
options = parser.parse_args()
if options.question is None:
    options.question, options.answers = "What is the capital of France?", ANSWERS
if not options.answers:
    parser.error("a question needs answers to rank")

with Engine.from_pretrained(options.model) as engine:
    prompt = engine.chat_ids([{"role": "user", "content": options.question}])
    scores = engine.score(prompt, options.answers)
ranked = sorted(zip(scores, options.answers, strict=True), reverse=True)
best = ranked[0][0]
total = best + log(sum(exp(score - best) for score in scores))  # the log-probability of all answers together
print(f"{options.question}\n{'share':>8} {'log p':>9} {'a byte':>8}  answer")
for score, answer in ranked:
    print(f"{exp(score - total):8.2%} {score:9.3f} {score / max(1, len(answer.encode())):8.3f}  {answer}")
