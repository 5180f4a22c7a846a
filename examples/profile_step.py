"""Times the ops of one decode step, and shows how fast each moves its bytes.

    python examples/profile_step.py --model baize-13b/ --quantize int8 --batch 8

It is a small part of `benchmarks/profile_step.py`, whose helpers it imports. Uses internals, which may change.
"""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from decode_step import DecodeStep, time_on_gpu, times_on_cpu

from baize_engine.loading import load
from baize_engine.model.cost import decode_step
from baize_engine.options import EngineOptions

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="baize-demo", help="default: what recover_and_chat.py writes")
parser.add_argument("--quantize", choices=("int8", "int4"), help="default: float16, or what the folder holds")
parser.add_argument("--batch", type=int, default=1, help="sequences")
parser.add_argument("--context", type=int, default=128, help="tokens that each attends to")
options = parser.parse_args()

model = load(options.model, EngineOptions(dtype="float16", quantize=options.quantize)).loop.decoder.model
step = DecodeStep.of(model, options.batch, options.context)
names, calls, seconds = [place.op for place in step.places()], step.plan(), {}
if model.device == "cpu":
    seconds, _ = times_on_cpu(calls, [step.label(place) for place in step.places()], 50)
for name in set(names) - set(seconds):
    seconds[name] = time_on_gpu([call for each, call in zip(names, calls, strict=True) if each == name], 50)
kind = model.config.quantization or options.quantize or "float16"
costs = decode_step(model.config, kind, options.batch, options.context, str(model.dtype)[6:])
moved = {each.name: each.read + each.written for each in costs}  # bytes; of any other op: next to none
print(f"{'op':<16} {'calls':>5} {'us':>9} {'MB':>9} {'GB/s':>7}")
for name in dict.fromkeys(names):
    us, megabytes = seconds[name].median * 1e6, moved.get(name, 0) / 1e6
    print(f"{name:<16} {names.count(name):5} {us:9.1f} {megabytes:9.3f} {megabytes / us * 1e3:7.2f}")
