"""Times at which tokens arrive, by the engine's loop."""

from __future__ import annotations

import bench_decode
import pytest
from arrivals import SAMPLED, Rows, arrivals, engine_of, loop_of, room
from models import random_model
from shapes import PRESETS

from baize_engine import SamplingParams
from baize_engine.model.prompt_runner import new_cache
from baize_engine.model.runner import Batch


@pytest.mark.parametrize("ahead", [False, True])
def test_each_row_of_a_step_has_its_own_blocks_and_seed(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ahead`: steps are launched before tokens are read, prompts are filled up to a bucket, as on a GPU."""
    model = random_model(PRESETS["tiny"], "float16", "cpu")
    cache = new_cache(model, room(3, 20, 5))
    prompt = bench_decode.prompts(1, 20, 1000)[0]
    rows = Rows(model, cache, prompt, 3, Batch(model, cache, 3, runs_ahead=ahead))
    alike, seconds = rows(5)
    drawn, _ = rows(5, SAMPLED)
    again, _ = rows(5, SAMPLED)
    assert len(alike) == len(seconds) == 5
    assert all(len(set(step)) == 1 for step in alike)
    assert drawn == again
    assert len(set(zip(*drawn, strict=True))) == 3
    assert rows.loop.pool.free_blocks == cache.num_blocks - 2  # those of the prompt that was computed


def test_arrivals_are_those_of_the_engine() -> None:
    """Times ascend, ids are `generate`'s, and neither depends on who else is asked for."""
    model = random_model(PRESETS["tiny"], "float16", "cpu")
    engine = engine_of(loop_of(model, 256))
    many = [bench_decode.prompts(1, length, 1000)[0] for length in (5, 9, 17)]
    params = [SamplingParams(max_new_tokens=count, ignore_eos=True) for count in (1, 4, 2)]
    found = arrivals(engine, many, params)
    assert found.ids == [done.token_ids for done in engine.generate(many, params)]
    assert [len(times) for times in found.seconds] == [1, 4, 2]
    assert all(times == sorted(times) and times[0] > 0 for times in found.seconds)
    assert found.firsts == [times[0] for times in found.seconds]
    first, *rest = found.seconds[1]
    assert len(found.gaps) == 3 + 1
    assert sum(found.gaps[:3]) == pytest.approx(rest[-1] - first)
