"""Answers prompts with Ray Data, one Engine in each actor.

    pip install '.[ray]'  # in the clone
    python examples/ray_batch.py /models/baize-13b /data/prompts.jsonl /data/answers --actors 8 --gpus 1

Adds "text" to JSON lines with a "prompt", in any order; all nodes need these paths. Texts do not depend on the actors' number.
"""

import argparse

import numpy as np
import ray

from baize_engine import Engine, SamplingParams


class Answerer:
    def __init__(self, options: argparse.Namespace) -> None:
        self.params = SamplingParams(max_new_tokens=options.max_new_tokens, temperature=0.7, seed=0)
        self.engine = Engine.from_pretrained(options.model, threads=None if options.gpus else options.cpus)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        answers = self.engine.generate(batch["prompt"].tolist(), self.params)
        return {**batch, "text": np.array([each.text for each in answers], dtype=object)}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name in ("model", "input", "output"):
    parser.add_argument(name)
for name, default in {"actors": 1, "gpus": 0, "cpus": 1, "batch_size": 512, "max_new_tokens": 256}.items():
    parser.add_argument(f"--{name}", type=int, default=default)  # gpus and cpus: of each actor
options = parser.parse_args()
ray.init()
if options.actors * options.cpus >= ray.cluster_resources()["CPU"]:  # Ray would wait for ever
    parser.error("the actors would take all CPUs of the cluster: Ray needs one more to read and write")
pool = {"compute": ray.data.ActorPoolStrategy(size=options.actors), "num_cpus": options.cpus, "num_gpus": options.gpus}
prompts = ray.data.read_json(options.input, lines=True).repartition(target_num_rows_per_block=options.batch_size)
answers = prompts.map_batches(Answerer, fn_constructor_args=[options], batch_size=options.batch_size, **pool)
answers.write_json(options.output, force_ascii=False)
