"""Answers prompts with Ray Data, one Engine in each actor.

    pip install 'baize-engine[ray]'
    python examples/ray_batch.py /models/baize-13b /data/prompts.jsonl /data/answers --actors 8 --gpus 1

The input is JSON lines with a "prompt"; other columns are kept. The output folder gets JSON lines with "text" added, in any
order and in as many files as Ray writes. Every node needs model, input and output at these paths. The seed gives the same
texts whatever the number of actors.
"""

from __future__ import annotations

import argparse

import numpy as np
import ray

from baize_engine import Engine, SamplingParams


class Answerer:
    """An actor: loads the model once, and adds "text" to each batch."""

    def __init__(self, model: str, threads: int | None, params: SamplingParams) -> None:
        self.engine, self.params = Engine.from_pretrained(model, threads=threads), params

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        completions = self.engine.generate(batch["prompt"].tolist(), self.params)
        return {**batch, "text": np.array([each.text for each in completions], dtype=object)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "input", "output"):
        parser.add_argument(name)
    parser.add_argument("--actors", type=int, default=1, help="engines in the cluster")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of an actor, 0 or 1")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of an actor, and its threads without a GPU")
    parser.add_argument("--batch_size", type=int, default=512, help="prompts of a call; 64 run together")
    parser.add_argument("--max_new_tokens", type=int, default=256)
    options = parser.parse_args()
    ray.init()
    if options.actors * options.cpus >= ray.cluster_resources()["CPU"]:  # Ray would wait for ever
        parser.error("the actors would take all CPUs of the cluster: Ray needs one more to read and write")
    params = SamplingParams(max_new_tokens=options.max_new_tokens, temperature=0.7, seed=0)
    prompts = ray.data.read_json(options.input, lines=True)
    # a file comes as one block, which one actor would get: blocks of a batch go round
    prompts.repartition(target_num_rows_per_block=options.batch_size).map_batches(
        Answerer,
        fn_constructor_args=(options.model, None if options.gpus else options.cpus, params),
        batch_size=options.batch_size,
        compute=ray.data.ActorPoolStrategy(size=options.actors),
        num_cpus=options.cpus,
        num_gpus=options.gpus,
    ).write_json(options.output, force_ascii=False)


if __name__ == "__main__":
    main()
