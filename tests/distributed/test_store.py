"""The notice board of a run."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch.distributed as dist
from ports import free_port

from baize_engine.distributed.member import Member
from baize_engine.distributed.store import RunStore
from baize_engine.distributed.verdict import Verdict
from baize_engine.distributed.world import World
from baize_engine.errors import DistributedError


@pytest.fixture
def connect() -> Callable[[int], RunStore]:
    """A rank's connection to the same store."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return lambda rank: RunStore(World(rank, 3, rank, 3, "127.0.0.1", server.port, agent_store=True), 30)


def test_who_has_entered(connect) -> None:
    first, second = connect(0), connect(2)
    assert first.members(range(3)) == []
    me = Member.of_this_process(2)
    second.enter(me)
    assert first.members(range(3)) == [me]
    second.beat(7)
    assert first.beats([2]) == [b"7"]
    assert first.beats([]) == []


def test_one_verdict_holds(connect) -> None:
    stores = [connect(rank) for rank in range(3)]
    for rank, store in enumerate(stores):
        store.enter(Member.of_this_process(rank))
        assert store.verdict() is None
    first, second = Verdict("rank 1 ended", dead=[1]), Verdict("rank 2 ended", dead=[2])
    assert stores[0].post(first) == first
    assert stores[2].post(second) == first
    assert stores[1].verdict() == first
    assert [store.take_word() for store in stores] == [True, False, False]
    assert stores[1].word_taken()


def test_a_run_started_again_has_a_board_of_its_own() -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    boards = [RunStore(World(0, 1, 0, 1, "127.0.0.1", server.port, True, attempt), 30) for attempt in range(2)]
    boards[0].enter(Member.of_this_process(0))
    boards[0].post(Verdict("rank 0 ended"))
    boards[1].enter(Member.of_this_process(0))
    assert boards[1].verdict() is None


def test_what_one_gives_another_waits_for(connect) -> None:
    giver, taker = connect(0), connect(1)
    found: list[str] = []
    waiting = threading.Thread(target=lambda: found.append(taker.given("files")))
    waiting.start()
    giver.give("files", "ab")
    waiting.join(60)
    assert found == ["ab"]


def test_readers_are_waited_for_no_longer_than_said(connect) -> None:
    host, reader = connect(0), connect(1)
    reader.has_read()
    host.wait_for_readers([1], 60)
    host.wait_for_readers([1, 2], 0.05)  # returns
    host.wait_for_readers([], 60)
    assert reader.address.startswith("127.0.0.1:")


def test_a_store_that_nobody_hosts_is_named() -> None:
    port = free_port()
    with pytest.raises(DistributedError, match=f"the rendezvous store at 127.0.0.1:{port} cannot be reached: "):
        RunStore(World(1, 2, 1, 2, "127.0.0.1", port), 0.5)


def test_a_port_that_is_taken_is_named() -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(DistributedError, match=f"the rendezvous store at 127.0.0.1:{server.port} cannot be reached: "):
        RunStore(World(0, 2, 0, 2, "127.0.0.1", server.port), 0.5, first=True)
