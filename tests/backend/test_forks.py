"""A process made by fork: told to spawn where it would wait for its parent's threads for ever, and working with one thread."""

from __future__ import annotations

import os
from pathlib import Path

import forked
import pytest
from tiny import PROMPTS, model


def printed(code: str, *arguments: object) -> list[str]:
    """The lines of a program that computes for itself all that its children get: the fork server has computed nothing."""
    done = forked.run(["-c", code, *arguments])
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


CODE = """
import os, signal, sys
from baize_engine import BaizeError, Engine, SamplingParams

folder, parents, childs, whose = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
few = SamplingParams(max_new_tokens=4)
engine = Engine.from_pretrained(folder, device="cpu", threads=parents)
if whose != "loaded":
    wanted = engine.generate(PROMPT, few)
child = os.fork()
if child == 0:
    signal.alarm(60)  # a child that waits for ever dies of it
    try:
        if whose == "own":
            engine = Engine.from_pretrained(folder, device="cpu", threads=childs)
        found = engine.generate(PROMPT, few)
        print("same" if whose == "loaded" or found == wanted else "other", flush=True)
    except BaizeError as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1], engine.generate(PROMPT, few)[0].finish_reason)  # the parent's is as before
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.parametrize(
    ("parents", "childs", "whose", "works"),
    [
        (2, 2, "inherited", False),
        (2, 2, "own", False),
        (2, 2, "loaded", False),
        (2, 1, "own", True),
        (1, 1, "inherited", True),
        (1, 2, "own", True),
    ],
)
def test_a_forked_child_works_or_is_told_to_spawn(
    tmp_path: Path, parents: int, childs: int, whose: str, works: bool
) -> None:
    code = CODE.replace("PROMPT", repr(PROMPTS[0]))
    arguments = [str(model(tmp_path / "m")), str(parents), str(childs), whose]
    child, parent = printed(code, *arguments)
    assert parent == "0 length"
    if works:
        assert child == "same"
    else:
        assert child.startswith("BackendError this process was forked after its parent had computed with several")
        assert "multiprocessing's 'spawn'" in child


PARENTS_STREAM = """
import os, signal, sys
from baize_engine import BaizeError, Engine, SamplingParams

engine = Engine.from_pretrained(sys.argv[1], device="cpu", threads=1)
few = SamplingParams(max_new_tokens=9, ignore_eos=True, logprobs=0)
wanted = engine.generate(PROMPT, few)
more = SamplingParams(max_new_tokens=30, ignore_eos=True, logprobs=0)
stream = engine.completions([PROMPT, PROMPT], [few, more])
other = engine.completions([PROMPT, PROMPT], [few, more])
next(stream), next(other)
if (child := os.fork()) == 0:
    signal.alarm(60)
    for first in (True, False):
        try:
            print(engine.generate(PROMPT, few) == wanted if first else next(stream), flush=True)
        except BaizeError as error:
            print(type(error).__name__, error, flush=True)
    print(len(engine._serving.loop._scheduler.sequences), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(len(next(stream)[0].token_ids), len(next(other)[0].token_ids))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_child_does_not_go_on_with_its_parents_calls(tmp_path: Path) -> None:
    code = PARENTS_STREAM.replace("PROMPT", repr(PROMPTS[0]))
    own, parents, left, after = printed(code, model(tmp_path / "m"))
    assert own == "True"
    assert parents.startswith("BackendError this call was made before this process was forked")
    assert left == "0"
    assert after == "30 30"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_fork_in_the_middle_of_a_call_is_told() -> None:
    code = """
import os
from baize_engine.errors import BaizeError
from baize_engine.generation.turns import Turns

turns = Turns()
with turns.turn():
    child = os.fork()
    if child == 0:
        try:
            with turns.turn():
                print("a turn")
        except BaizeError as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
child = os.fork()
if child == 0:
    with turns.turn():
        print("a turn", flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    first, second = printed(code)
    assert "forked in the middle of a call to this engine" in first
    assert second == "a turn"


THREADS_OF_A_CHILD = """
import os, sys, threading
from baize_engine.generation.turns import Turns
sys.setswitchinterval(1e-6)
turns = Turns()
for _ in range(40):
    if (child := os.fork()) == 0:
        inside, most, together = [0], [0], threading.Barrier(8)
        def call():
            together.wait()
            for _ in range(20):
                with turns.turn():
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    inside[0] -= 1
        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os._exit(most != [1])
    if os.waitpid(child, 0)[1]:
        sys.exit("two threads had a turn at a time, or none had")
"""


def test_threads_of_a_child_that_begin_together_take_turns() -> None:
    assert printed(THREADS_OF_A_CHILD) == []
