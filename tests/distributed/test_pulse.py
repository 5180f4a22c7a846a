"""What a rank hears of the others."""

from __future__ import annotations

import queue

import pytest
import torch.distributed as dist

from baize_engine.distributed.member import Member
from baize_engine.distributed.pulse import Pulse
from baize_engine.distributed.store import RunStore
from baize_engine.distributed.verdict import Verdict
from baize_engine.distributed.world import World


class Counted(RunStore):
    """A connection whose beats are seen."""

    def __init__(self, world: World) -> None:
        super().__init__(world, 30)
        self.beaten: queue.SimpleQueue[int] = queue.SimpleQueue()

    def beat(self, number: int) -> None:
        super().beat(number)
        self.beaten.put(number)


class Heard:
    """A rank's pulse, and its news as they come."""

    def __init__(self, rank: int, port: int) -> None:
        self.store = Counted(World(rank, 2, rank, 2, "127.0.0.1", port, agent_store=True))
        self.store.enter(Member.of_this_process(rank))
        self.news: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.pulse = Pulse(self.store, [1 - rank], lambda: self.news.put(True))

    def listen(self, times: int) -> None:
        """Wait until it has beaten, and so listened, this often."""
        for _ in range(times):
            self.store.beaten.get(timeout=60)


@pytest.fixture
def server() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def test_members_and_the_verdict_are_news(server: dist.TCPStore) -> None:
    first = Heard(0, server.port)
    second = Heard(1, server.port)
    for heard, other in ((first, 1), (second, 0)):
        assert heard.news.get(timeout=60)
        assert [member.rank for member in heard.pulse.members] == [other]
        assert list(heard.pulse.heard) == [other]
    verdict = second.store.post(Verdict("rank 0 ended"))
    assert first.news.get(timeout=60)
    assert first.pulse.verdict == verdict
    first.pulse.stop()
    second.pulse.stop()


def test_who_is_a_member_has_been_heard(server: dist.TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any moment: the watch is another thread."""
    lacking: list[int] = []
    read = RunStore.beats

    def beats(store: RunStore, ranks: list[int]) -> list[bytes]:
        lacking.extend(member.rank for member in first.pulse.members if member.rank not in first.pulse.heard)
        return read(store, ranks)

    first = Heard(0, server.port)
    first.listen(2)
    monkeypatch.setattr(RunStore, "beats", beats)
    second = Heard(1, server.port)
    assert first.news.get(timeout=60)
    assert [member.rank for member in first.pulse.members] == [1]
    assert lacking == []
    first.pulse.stop()
    second.pulse.stop()


def test_one_that_stops_is_heard_no_more(server: dist.TCPStore) -> None:
    first, second = Heard(0, server.port), Heard(1, server.port)
    assert first.news.get(timeout=60)
    second.listen(2)
    before = first.pulse.heard[1]
    second.listen(2)
    first.listen(first.store.beaten.qsize() + 1)
    second.pulse.stop()
    first.listen(2)
    last = first.pulse.heard[1]
    first.listen(2)
    assert first.pulse.heard[1] == last > before
    first.pulse.stop()
