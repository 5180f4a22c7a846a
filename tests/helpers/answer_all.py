"""A program of ranks: loads each model of a list in turn, and prints what it answers as a line of JSON.

Usage: answer_all.py FILE, a JSON list of {"load": arguments of Engine.from_pretrained or from_diff, "prompts": lists of ids,
"params": of each prompt, SamplingParams' fields}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from baize_engine import Engine, SamplingParams


def answer(job: dict) -> list:
    load = Engine.from_diff if "path_raw" in job["load"] else Engine.from_pretrained
    with load(**job["load"]) as engine:
        done = engine.generate(job["prompts"], [SamplingParams(**params) for params in job["params"]])
        scores = engine.prompt_logprobs(job["prompts"][:1], 0)
        return [
            [
                [one.token_ids, one.finish_reason, [(each.logprob, each.top) for each in one.logprobs or ()]]
                for one in done
            ],
            [[each and each.logprob for each in scored] for scored in scores],
        ]


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text()):
        print(json.dumps(answer(each)), flush=True)
