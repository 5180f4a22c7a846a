"""Compares a model's int8 form with float16: bytes, greedy answers, and the probabilities of the next token.

    python examples/compare_int8.py
    python examples/compare_int8.py "Name three rivers." --model baize-13b/ --int8 baize-13b-int8/

The int8 form is kept in the folder of --int8, and made unless that exists. Both models are in memory at once.
"""

import argparse
from pathlib import Path

import numpy as np

from baize_engine import Engine, SamplingParams, quantize

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("questions", nargs="*", default=["What is the capital of France?", "Write a story."])
parser.add_argument("--model", default="baize-demo", help="default: what recover_and_chat.py writes")
parser.add_argument("--int8", help="default: the model's folder with -int8 behind its name")
options = parser.parse_args()
options.int8 = options.int8 or f"{options.model.rstrip('/')}-int8"

if not Path(options.int8).exists():
    quantize(options.model, options.int8, "int8")
for folder in (options.model, options.int8):
    print(f"{folder}: {sum(file.stat().st_size for file in Path(folder).glob('*.safetensors')):,} bytes")
print("KL, nats  same next token  same answer  question")
with Engine.from_pretrained(options.model, dtype="float16") as full, Engine.from_pretrained(options.int8) as int8:
    for question in options.questions:
        prompt = full.chat_ids([{"role": "user", "content": question}])
        ids, other = (engine.generate(prompt, SamplingParams())[0].token_ids for engine in (full, int8))
        before = [prompt + ids[:i] for i in range(len(ids))]  # what precedes each token of float16's answer
        p, q = (np.array(engine.next_token_logprobs(before, range(full.vocab_size))) for engine in (full, int8))
        kl, same = (np.exp(p) * (p - q)).sum(1).mean(), (p.argmax(1) == q.argmax(1)).sum()
        print(f"{kl:8.1e} {same:8} of {len(ids):<6} {'yes' if ids == other else 'no':>6}       {question}")
