"""The launcher's variables."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from baize_engine.distributed.world import REQUIRED, World
from baize_engine.errors import DistributedError

SET = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "a.example",
    "MASTER_PORT": "29500",
}


def test_of_environment() -> None:
    assert World.of_environment(SET) == World(5, 8, 1, 4, "a.example", 29500)
    agent = {**SET, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}
    assert World.of_environment(agent) == World(5, 8, 1, 4, "a.example", 29500, agent_store=True, attempt=2)


@pytest.mark.parametrize("missing", REQUIRED)
def test_no_launcher_no_world(missing: str) -> None:
    assert World.of_environment({name: text for name, text in SET.items() if name != missing}) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"RANK": "8"}, "RANK is '8', wanted a number from 0 to 7"),
        ({"RANK": "-1"}, "RANK is '-1', wanted a number from 0 to 7"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', wanted a number from 1 to 65536"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK is '4', wanted a number from 0 to 3"),
        ({"LOCAL_WORLD_SIZE": "9"}, "LOCAL_WORLD_SIZE is '9', wanted a number from 1 to 8"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT is '65536'"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is empty"),
        ({"TORCHELASTIC_RESTART_COUNT": ""}, "TORCHELASTIC_RESTART_COUNT is ''"),
    ],
)
def test_wrong_values_are_named(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(DistributedError, match=message.replace("(", r"\(")):
        World.of_environment({**SET, **wrong})


def test_the_store_is_with_rank_0_or_with_the_agent() -> None:
    assert World(0, 2, 0, 2, "a", 1).hosts_store
    assert not World(1, 2, 1, 2, "a", 1).hosts_store
    assert not World(0, 2, 0, 2, "a", 1, agent_store=True).hosts_store


def test_the_world_is_known_without_torch_and_what_torch_reads_can_be_set_before_it() -> None:
    code = """
import os, sys
from baize_engine.distributed.world import World
world = World.of_environment()
world.set_torch_defaults()
print(world.rank, os.environ["TORCH_CPP_LOG_LEVEL"], os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"], "torch" in sys.modules)
"""
    environment = {**os.environ, **SET, "TORCH_CPP_LOG_LEVEL": "INFO"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "5 INFO 1 False\n"
