"""examples/ray_batch.py on a local Ray, where that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from assets import REPO
from commands import read, write

from baize_engine import Engine, SamplingParams

ray = pytest.importorskip("ray")


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """A local Ray that takes itself to have three CPUs; the environment of its programs."""
    ray.init(address="local", num_cpus=3, num_gpus=0, include_dashboard=False)
    yield {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    ray.shutdown()


def test_two_actors_answer_as_one_engine_does(folder: Path, tmp_path: Path, cluster: dict[str, str]) -> None:
    lines = [{"id": i, "prompt": f"the cat é {i}"} for i in range(12)]
    prompts = write(tmp_path / "prompts.jsonl", lines)
    flags = ("--actors", "2", "--batch_size", "3", "--max_new_tokens", "6")
    script = [
        sys.executable,
        str(REPO / "examples" / "ray_batch.py"),
        str(folder),
        str(prompts),
        str(tmp_path / "out"),
        *flags,
    ]
    done = subprocess.run(script, env=cluster, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [line for path in (tmp_path / "out").iterdir() for line in read(path)]
    with Engine.from_pretrained(folder, device="cpu", threads=1) as engine:
        params = SamplingParams(max_new_tokens=6, temperature=0.7, seed=0)
        wanted = engine.generate([line["prompt"] for line in lines], params)
    texts = [each.text for each in wanted]
    assert len(set(texts)) > 1
    assert sorted(found, key=lambda line: line["id"]) == [
        {**line, "text": text} for line, text in zip(lines, texts, strict=True)
    ]
