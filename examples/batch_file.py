"""Answers a file of prompts. Each answer is written as soon as it and those before it are ready.

    python examples/batch_file.py prompts.jsonl answers.jsonl --model baize-13b/ --temperature 0.7

Each line of the input is a JSON object with a "prompt", or with "messages" for the chat format; other fields are kept.
`baize generate --input` also takes token ids and parameters of a record, resumes, and continues after a bad line.
"""

import argparse
import json
from pathlib import Path

from baize_engine import Engine, SamplingParams

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("input", type=Path)
parser.add_argument("output", type=Path)
parser.add_argument("--model", default="baize-demo", help="default: what recover_and_chat.py writes")
parser.add_argument("--max_new_tokens", type=int, default=256)
parser.add_argument("--temperature", type=float, default=0.0)
options = parser.parse_args()

records = [json.loads(line) for line in options.input.read_bytes().splitlines() if line.strip()]
params = SamplingParams(max_new_tokens=options.max_new_tokens, temperature=options.temperature, seed=0)
with Engine.from_pretrained(options.model) as engine:
    prompts = [engine.chat_ids(each["messages"]) if "messages" in each else each["prompt"] for each in records]
    answers = engine.completions(prompts, params)  # all prompts are checked here
    with options.output.open("w", encoding="utf-8") as output:
        for record, (answer,) in zip(records, answers, strict=True):
            line = {**record, "text": answer.text, "finish_reason": answer.finish_reason}
            print(json.dumps(line, ensure_ascii=False), file=output, flush=True)
    print(f"{options.output}: {len(records)} answers, {engine.usage.generated_tokens} tokens")
