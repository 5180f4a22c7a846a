"""Which of the run's processes this one is, by the environment that torchrun and other launchers set. Does not know torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from baize_engine.errors import DistributedError

REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class World:
    """This process among `size` of them, of which `local_size` run on this host."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str  # of the rendezvous store
    port: int
    agent_store: bool = False  # torchrun's agent hosts the store; otherwise rank 0 does
    attempt: int = 0  # torchrun starts the ranks again after a failure where it is told to

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> World | None:
        """The world that the launcher describes; None where a variable is not set. DistributedError names a wrong one."""
        if any(name not in environment for name in REQUIRED):
            return None
        size = _number(environment, "WORLD_SIZE", 1, 1 << 16)
        local_size = _number(environment, "LOCAL_WORLD_SIZE", 1, size)
        if not environment["MASTER_ADDR"]:
            raise DistributedError("MASTER_ADDR is empty, wanted the host of the rendezvous store")
        return cls(
            rank=_number(environment, "RANK", 0, size - 1),
            size=size,
            local_rank=_number(environment, "LOCAL_RANK", 0, local_size - 1),
            local_size=local_size,
            address=environment["MASTER_ADDR"],
            port=_number(environment, "MASTER_PORT", 1, 65535),
            agent_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            attempt=_number(
                {"TORCHELASTIC_RESTART_COUNT": "0", **environment}, "TORCHELASTIC_RESTART_COUNT", 0, 1 << 31
            ),
        )

    @staticmethod
    def set_torch_defaults() -> None:
        """What torch reads once: before its first import, if all of it is to count."""
        # Where the store's host died, each of its clients would dump a C++ stack into stderr; the watch says who died.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        # A link that failed while all ranks live is known to NCCL alone, which by this ends the process.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")

    @property
    def hosts_store(self) -> bool:
        """Whether the rendezvous store is in this process."""
        return self.rank == 0 and not self.agent_store


def _number(environment: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise DistributedError(f"{name} is {text!r}, wanted a number from {least} to {most}")
    return int(text)
