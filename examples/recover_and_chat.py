"""Recovers a model from a base and a weight diff, verifies it, and chats with it. An empty line ends the chat.

    python examples/recover_and_chat.py    # recovers the bundled demo pair to baize-demo/
    python examples/recover_and_chat.py llama-13b/ open-instruct-baize-13b-diff/ baize-13b/

Run again, it chats at once: a finished recovery is not repeated. `baize chat` also handles long conversations.
"""

import argparse
import contextlib
from pathlib import Path

import baize_engine
from baize_engine import Engine, SamplingParams, recover, verify

PAIR = Path(baize_engine.__file__).parent / "demo_pair"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("base", nargs="?", default=PAIR / "base", help="folder of the base")
parser.add_argument("diff", nargs="?", default=PAIR / "diff", help="folder of the diff")
parser.add_argument("tuned", nargs="?", default="baize-demo", help="folder of the recovered model, which is written")
options = parser.parse_args()

tuned = recover(options.base, options.diff, options.tuned, resume=True).folder
report = verify(tuned)
if not report.ok:
    raise SystemExit("\n".join(report.problems))
print(f"{tuned}: {report.tensors} tensors, {report.bytes:,} bytes, verified")

messages = []
with Engine.from_pretrained(tuned) as engine, contextlib.suppress(EOFError):
    while question := input("> "):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": ""}]
        for piece in engine.stream(engine.chat_ids(messages[:-1]), SamplingParams(max_new_tokens=256)):
            print(piece, end="", flush=True)
            messages[-1]["content"] += piece
        print()
