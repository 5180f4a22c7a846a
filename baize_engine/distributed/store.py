"""The rendezvous store as the ranks of a run use it: a notice board of members, their beats and the verdict."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta

import torch.distributed as dist

from baize_engine.distributed.member import Member
from baize_engine.distributed.verdict import Verdict
from baize_engine.distributed.world import World
from baize_engine.errors import DistributedError

LOOK = 0.01  # seconds between two looks for what another rank leaves
NONE_YET = "-"  # where there will be a verdict
GONE = (dist.DistNetworkError, dist.DistStoreError)  # what any call raises once the store is gone or does not answer


class RunStore:
    """One connection to the store. Any call raises one of GONE once there is none."""

    def __init__(self, world: World, limit: float, *, first: bool = False) -> None:
        """Connect within `limit` seconds. `first`: this process's first connection, which opens the store where it hosts it."""
        self.world = world
        try:
            self._store = dist.TCPStore(
                world.address,
                world.port,
                world.size,
                is_master=world.hosts_store and first,
                timeout=timedelta(seconds=limit),
                wait_for_workers=False,
            )
        except GONE as error:
            reason = str(error).splitlines()[0]
            raise DistributedError(f"the rendezvous store at {self.address} cannot be reached: {reason}") from error
        self._keys = dist.PrefixStore(f"baize/{world.attempt}", self._store)

    @property
    def address(self) -> str:
        return f"{self.world.address}:{self.world.port}"

    def for_groups(self) -> dist.Store:
        """What torch's process groups meet by."""
        return dist.PrefixStore("torch", self._keys)

    def enter(self, member: Member) -> None:
        self._keys.compare_set("verdict", "", NONE_YET)
        self.beat(0)
        self._keys.set(f"member/{member.rank}", member.to_json())

    def members(self, ranks: Iterable[int]) -> list[Member]:
        """Those of these ranks that have entered."""
        names = [name for name in (f"member/{rank}" for rank in ranks) if self._keys.check([name])]
        return [Member.from_json(text) for text in self._keys.multi_get(names)] if names else []

    def beat(self, number: int) -> None:
        self._keys.set(f"beat/{self.world.rank}", str(number))

    def beats(self, ranks: list[int]) -> list[bytes]:
        """The last beat of each of these ranks, which have entered."""
        return self._keys.multi_get([f"beat/{rank}" for rank in ranks]) if ranks else []

    def verdict(self) -> Verdict | None:
        return _verdict(self._keys.get("verdict"))

    def post(self, verdict: Verdict) -> Verdict:
        """Make this the verdict unless there is one already. Returns the one that holds."""
        return _verdict(self._keys.compare_set("verdict", NONE_YET, verdict.to_json())) or verdict

    def verdict_in_order(self) -> Verdict:
        """That of a run whose rank 0 has said that it ends, which it does after it has posted this."""
        verdict = self.verdict()
        if verdict is None:
            raise DistributedError("rank 0 ended without a verdict")
        return verdict

    def take_word(self) -> bool:
        """Whether this rank, as the first to ask, is the one that prints the verdict."""
        return self._keys.compare_set("word", "", str(self.world.rank)) == str(self.world.rank).encode()

    def word_taken(self) -> bool:
        return self._keys.check(["word"])

    def has_read(self) -> None:
        """This rank knows the verdict and needs the store no more."""
        self._keys.set(f"read/{self.world.rank}", "")

    def wait_for_readers(self, ranks: Iterable[int], seconds: float) -> None:
        """Until these ranks know the verdict, this long at most."""
        names = [f"read/{rank}" for rank in ranks]
        if names:
            self._wait(names, seconds)

    def give(self, name: str, text: str) -> None:
        """Leave a text for other ranks."""
        self._keys.set(f"given/{name}", text)

    def given(self, name: str) -> str:
        """Wait for a text that another rank leaves. Returns to Python each second, for signals."""
        while not self._wait([f"given/{name}"], 1.0):
            pass
        return self._keys.get(f"given/{name}").decode()

    def _wait(self, names: list[str], seconds: float) -> bool:
        # not the store's own wait, which logs on stderr when its time is up
        until = time.monotonic() + seconds
        while not (there := self._keys.check(names)) and time.monotonic() < until:
            time.sleep(LOOK)
        return bool(there)


def _verdict(text: bytes) -> Verdict | None:
    return None if text.decode() == NONE_YET else Verdict.from_json(text)
