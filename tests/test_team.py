"""Engines whose model several processes hold: the bits of one, and how they end."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import rank_processes
import tiny
import torch
from assets import shared
from processes import ends

from baize_engine import Engine, quantize
from baize_engine.errors import RequestError

ANSWER_ALL = Path(__file__).parent / "helpers" / "answer_all.py"
PARAMS = [
    {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 2},
    {"max_new_tokens": 12, "temperature": 0.9, "seed": 3, "n": 2, "ignore_eos": True, "logprobs": 0},
    {"max_new_tokens": 9, "temperature": 0.8, "seed": 4, "repetition_penalty": 1.2, "ignore_eos": True},
]
WIDE = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32}


def jobs(folder: Path) -> list[dict]:
    """One for each corner of the space of configs and precisions."""
    folder.mkdir()
    plain = tiny.model(folder / "plain")
    grouped = tiny.model(folder / "grouped", num_attention_heads=8, head_dim=8, vocab_size=101, intermediate_size=76)
    tied = tiny.model(folder / "tied", tie_word_embeddings=True, vocab_size=97)
    wide = tiny.model(folder / "wide", **WIDE)
    base, diff = tiny.write_pair(folder / "pair")
    loads = [
        {"path": plain},
        {"path": plain, "dtype": "bfloat16", "cache_dtype": "float16", "speculate": "ngram"},
        {"path": grouped, "dtype": "float16", "cache_tokens": 160},
        {"path": tied},
        *({"path": path, "quantize": kind} for path in (grouped, tied) for kind in ("int8", "int4")),
        *({"path": quantize(wide, folder / kind, kind).folder} for kind in ("int8", "int4")),
        {"path": plain, "quantize": "int8", "exact_activations": True},
        *({"path_raw": base, "path_diff": diff, "quantize": kind} for kind in (None, "int4")),
    ]
    return [
        {"load": {**{name: str(value) if name.startswith("path") else value for name, value in load.items()}, "device": "cpu"},
         "prompts": tiny.PROMPTS, "params": PARAMS}
        for load in loads
    ]  # fmt: skip


def answers(folder: Path, asked: list[dict], size: int, how: object, **environment: str) -> list:
    """What `size` ranks answer to the jobs, one after another."""
    folder.mkdir()
    path = folder / "jobs.json"
    path.write_text(json.dumps([{**job, "load": {**job["load"], "tensor_parallel": how}} for job in asked]))
    found = rank_processes.run(folder, ["-W", "ignore", str(ANSWER_ALL), str(path)], size, **environment)
    assert (found.codes, found.err) == ([0] * size, "")
    return [json.loads(line) for line in found.out.splitlines()]


def test_ranks_have_the_bits_of_one(tmp_path: Path) -> None:
    asked = jobs(tmp_path / "models")
    alone = answers(tmp_path / "1", asked, 1, "exact")
    assert len(alone) == len(asked)
    for size, how in ((2, "auto"), (4, 4)):
        assert answers(tmp_path / str(size), asked, size, how) == alone


@pytest.mark.parametrize("backend", ["torch", "cpp-scalar"])
def test_ranks_have_the_bits_of_one_on_other_backends(tmp_path: Path, backend: str) -> None:
    asked = [job for n, job in enumerate(jobs(tmp_path / "models")) if n in (0, 5, 6)]
    alone = answers(tmp_path / "1", asked, 1, "exact", BAIZE_BACKEND=backend)
    assert answers(tmp_path / "2", asked, 2, "auto", BAIZE_BACKEND=backend) == alone


COMMAND_OF_RANK = """
import json, os, sys
from baize_engine.cli import main
sys.argv[1:] = json.loads(sys.argv[1])[int(os.environ["RANK"])]
sys.exit(main())
"""


def commands(folder: Path, *arguments: list[str]) -> rank_processes.Result:
    """What ranks do whose commands have these arguments."""
    return rank_processes.run(folder, ["-c", COMMAND_OF_RANK, json.dumps(arguments)], len(arguments))


def generate(model: Path, *more: str) -> list[str]:
    ids = model.parent / "ids.jsonl"
    ids.write_text('{"token_ids": [1, 5, 9]}\n')
    return [
        "generate", str(model), "--input", str(ids), "--output", "-", "--max_new_tokens", "4", "--device", "cpu", *more
    ]  # fmt: skip


def test_rank_0_alone_speaks(tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "m")
    found = commands(tmp_path / "run", generate(model), generate(model))
    assert found.codes == [0, 0]
    assert len(found.out.splitlines()) == 1
    assert found.err.count("records") == 1


def test_what_another_rank_is_warned_of_is_told_by_rank_0(tmp_path: Path) -> None:
    tensors = tiny.state(tiny.config(), 0, scale=0.3)
    tensors["model.layers.1.mlp.up_proj.weight"][-1, -1] = 1e6  # of the other rank's rows
    model = tiny.write_model(tmp_path / "m", tiny.config(torch_dtype="float32"), tensors)
    found = commands(tmp_path / "run", *[generate(model, "--dtype", "float16")] * 2)
    (line,) = [each for each in found.err.splitlines() if "rank" in each]
    assert "rank 1: model.layers.1.mlp.up_proj.weight: 1 finite value(s) left the range of float16" in line


WITHIN = 60  # seconds in which all have ended after one was killed, on the slowest machine


def long_run(folder: Path) -> list[str]:
    """The command of a run that takes a while, and writes each answer as it comes."""
    model = tiny.model(folder / "m", max_position_embeddings=2048)
    (folder / "in.jsonl").write_text('{"token_ids": [1, 5, 9]}\n' * 4000)
    options = ["--max_new_tokens", "200", "--ignore_eos", "--device", "cpu", "--quiet"]
    return ["generate", str(model), "--input", str(folder / "in.jsonl"), "--output", "-", *options]


@pytest.mark.parametrize("victim", range(2))
def test_the_others_end_when_a_rank_is_killed(tmp_path: Path, victim: int) -> None:
    program = ["-m", "baize_engine", *long_run(tmp_path)]
    reading, writing = os.pipe()
    with open(reading, "rb") as answers, rank_processes.started(tmp_path, program, 2, stdout=writing) as processes:
        os.close(writing)
        assert answers.readline().startswith(b'{"index": 0')
        processes[victim].kill()
        codes = [process.wait(WITHIN) for process in processes]
    assert codes.pop(victim) == -signal.SIGKILL
    assert all(codes)
    (line,) = (tmp_path / "err").read_text().splitlines()
    assert line.startswith(f"baize: rank {victim} (")
    assert line.endswith("was killed by signal 9")


@pytest.mark.slow
def test_the_others_end_at_whatever_moment_a_rank_is_killed(tmp_path: Path) -> None:
    """20 random moments from the start on, under torchrun, which tells of a rank that ended before the ranks met."""
    command, draw = long_run(tmp_path), random.Random(20)
    for number in range(20):
        victim, moment = draw.randrange(2), draw.uniform(0, 7)
        folder = tmp_path / str(number)
        folder.mkdir()
        with rank_processes.torchrun(folder, ["-m", "baize_engine", *command], 2) as (agent, ranks):
            time.sleep(moment)
            with suppress(ProcessLookupError):  # all is done
                os.kill(ranks[victim], signal.SIGKILL)
            assert all(ends(pid, WITHIN) for pid in ranks.values()), (victim, moment)
            assert agent.wait(60), (victim, moment)
        said = [line for line in (folder / "err").read_text().splitlines() if line.startswith("baize:")]
        assert len(said) <= 1, (victim, moment, said)
        print(f"rank {victim} killed after {moment:.2f} s: {said}")


DIFFERENT = {
    "option": ("has --dtype bfloat16; rank 0", ["--dtype", "bfloat16"]),
    "config": ("has config's rms_norm_eps 0.01; rank 0", []),
    "file": ("has fingerprint of the model's files", []),
    "nothing": ("nowhere does not exist, wanted a folder", []),
    "damage": ("holds values that are not finite", ["--quantize", "int8"]),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_rank_that_differs_ends_the_run_with_one_line(tmp_path: Path, what: str) -> None:
    words, more = DIFFERENT[what]
    model = other = tiny.model(tmp_path / "m")
    if what == "file":
        other = tiny.model(tmp_path / "other", seed=1)
    if what == "config":
        other = tiny.model(tmp_path / "other", rms_norm_eps=0.01)
    if what == "nothing":
        other = tmp_path / "nowhere"
    if what == "damage":  # in the last rows of a matrix, which are the other rank's
        tensors = tiny.state(tiny.config(), 0, scale=0.3)
        tensors["model.layers.1.mlp.up_proj.weight"][-1, -1] = float("nan")
        model = other = tiny.write_model(tmp_path / "damaged", tiny.config(torch_dtype="float32"), tensors)
    first = generate(model, *(more if what == "damage" else []))
    found = commands(tmp_path / "run", first, generate(other, *more))
    assert all(found.codes)
    (line,) = found.err.splitlines()
    assert line.startswith("baize: rank 1 (")
    assert words in line
    assert found.out == ""


ENGINES = """
import sys
from baize_engine import Engine
from baize_engine.errors import BaizeError
one = Engine.from_pretrained(sys.argv[1], device="cpu")
try:
    Engine.from_pretrained(sys.argv[1], device="cpu")
except BaizeError as error:
    print(error)
one.close()
with Engine.from_pretrained(sys.argv[1], device="cpu", quantize="int8") as two:
    one.close()  # once more: two goes on
    print(len(two.generate([[1, 5]])))
alone = Engine.from_pretrained(sys.argv[1], device="cpu", tensor_parallel=1)
print(len(alone.generate([[1, 5]])))
try:
    Engine.from_pretrained(sys.argv[1] + "x", device="cpu")
except BaizeError as error:
    print("refused")
try:
    Engine.from_pretrained(sys.argv[1], device="cpu")
except BaizeError as error:
    print(error)
sys.exit(7)
"""


def test_a_program_makes_one_engine_after_another(tmp_path: Path) -> None:
    found = rank_processes.run(tmp_path / "run", ["-c", ENGINES, str(tiny.model(tmp_path / "m"))], 2)
    one_at_a_time, *counts, refused, ended = found.out.splitlines()
    assert one_at_a_time.endswith("can hold only one: close that engine first")
    assert (counts, refused) == (["1", "1"], "refused")
    assert ended.endswith("a model could not be loaded: start the run again")
    assert found.err == ""
    assert found.codes == [7, 1]


FAILS = """
import sys
from baize_engine import Engine
from baize_engine.errors import BaizeError
from baize_engine.model.step_state import StepState
engine = Engine.from_pretrained(sys.argv[1], device="cpu")
step, times = StepState.ops, []

def fails(*arguments):
    def no_memory():
        raise MemoryError("for this step")
    ops = step(*arguments)
    return [*ops[:4], type(next(op for op in ops if op.name == "host_call"))(no_memory, ()), *ops[4:]]

StepState.ops = fails  # in the middle of a step
for error in MemoryError, BaizeError:
    try:
        engine.generate([[1, 5]])
    except error as found:
        print(found)
engine.close()
try:
    Engine.from_pretrained(sys.argv[1], device="cpu")
except BaizeError as error:
    print(error)
sys.exit(7)
"""


def test_a_step_that_fails_on_rank_0_ends_the_others(tmp_path: Path) -> None:
    """They wait in its middle, and would take what the next step brings for the rest of it."""
    found = rank_processes.run(tmp_path / "run", ["-c", FAILS, str(tiny.model(tmp_path / "m"))], 2)
    step, later, load = found.out.splitlines()
    assert step == "for this step"
    assert later.startswith("the other ranks have ended")
    assert load.startswith("the other ranks have ended, because a step failed")
    assert (found.codes, found.err) == ([7, 1], "")


CLOSES = """
import signal, sys
from baize_engine import Engine
from baize_engine.errors import RequestError
from baize_engine.model.prompt_runner import PromptRunner
engine = Engine.from_pretrained(sys.argv[1], device="cpu")
compute = PromptRunner.compute

def closing(*arguments):
    signal.raise_signal(signal.SIGUSR1)
    compute(*arguments)

PromptRunner.compute = closing
signal.signal(signal.SIGUSR1, lambda *_: engine.close())
try:
    engine.generate([[1, 5]])
except RequestError as error:
    print(error)
PromptRunner.compute = compute
with Engine.from_pretrained(sys.argv[1], device="cpu") as other:
    print(len(other.generate([[1, 5]])))
"""


def test_an_engine_closed_in_the_middle_of_a_step_is_closed_after_it(tmp_path: Path) -> None:
    found = rank_processes.run(tmp_path / "run", ["-c", CLOSES, str(tiny.model(tmp_path / "m"))], 2)
    assert (found.out.splitlines(), found.err, found.codes) == (["this engine is closed", "1"], "", [0, 0])


def test_a_device_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    model = tiny.model(tmp_path / "m")
    found = commands(tmp_path / "run", *[[*generate(model)[:-2], "--device", "cuda"]] * 2)
    assert found.codes == [1, 1]
    (line,) = found.err.splitlines()
    assert "cuda" in line.lower()


def test_the_number_asked_for_must_be_that_of_the_run(tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "m")
    with pytest.raises(RequestError, match=r"tensor_parallel is 2, but this run has 1 rank\(s\)"):
        Engine.from_pretrained(model, device="cpu", tensor_parallel=2)
    with pytest.raises(RequestError, match="tensor_parallel is 3, wanted 'auto', 'exact', 1, 2, 4, 8"):
        Engine.from_pretrained(model, device="cpu", tensor_parallel=3)
    with pytest.raises(RequestError, match="speculate is 'self-int4' with tensor_parallel, wanted 'ngram'"):
        Engine.from_pretrained(model, device="cpu", tensor_parallel="exact", speculate="self-int4")


def test_ranks_say_the_golden_ids_of_a_real_model(tmp_path: Path) -> None:
    """Of a model whose intermediate columns, 172, no number of segments divides."""
    folder = shared("assets/stories260K")
    cases = json.loads((folder / "golden.json").read_text())["cases"]
    wanted = [case["greedy_ids"] for case in cases]
    asked = [
        {
            "load": {"path": str(folder), "device": "cpu"},
            "prompts": [case["prompt_ids"] for case in cases],
            "params": [{"max_new_tokens": len(ids), "temperature": 0, "logprobs": 0} for ids in wanted],
        }
    ]
    alone = answers(tmp_path / "1", asked, 1, "exact")
    completions, _ = alone[0]
    assert [ids for ids, _, _ in completions] == wanted
    assert answers(tmp_path / "2", asked, 2, "auto") == alone


def test_a_backend_that_cannot_run_is_refused_with_its_reason(tmp_path: Path) -> None:
    command = ["-m", "baize_engine", *generate(tiny.model(tmp_path / "m"))]
    found = rank_processes.run(tmp_path / "run", command, 2, BAIZE_BACKEND="nonsense")
    (line,) = found.err.splitlines()
    assert line.startswith("baize: BAIZE_BACKEND=nonsense: there is no backend 'nonsense', wanted one of ")
    assert found.codes == [1, 1]


def test_the_demo_needs_no_other_rank(tmp_path: Path) -> None:
    found = rank_processes.run(tmp_path / "run", ["-m", "baize_engine", "demo", "--quiet"], 2)
    assert (found.codes, found.err) == ([0, 0], "")
    assert " right" in found.out


def test_memory_that_ranks_share_is_refused_as_a_part(tmp_path: Path) -> None:
    folder = tiny.model(tmp_path / "m")
    program = """
import sys
from baize_engine import loading
from baize_engine.cli import main
loading.free_bytes = lambda device: 2 << 20
sys.exit(main(sys.argv[1:]))
"""
    command = ["-c", program, *generate(folder, "--cache_tokens", "100000")]
    found = rank_processes.run(tmp_path / "run", command, 2)
    (line,) = found.err.splitlines()
    assert "and this machine, for each of its 2 ranks, has 1.0 MiB free: " in line
    assert found.codes == [1, 1]
