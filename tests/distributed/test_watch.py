"""A rank that dies, hangs, fails or never comes: all others end, and one message names it."""

from __future__ import annotations

import random
import re
import signal
import socket
import time

import pytest
from ports import free_port

from baize_engine.distributed.watch import TERMINATED

JOIN = 'ranks = Ranks.join(world, "cpu", limit=30)\n'
# Every rank is on a host of its own, as far as the others see, and dead after three seconds of silence instead of six.
APART = """
import baize_engine.distributed.member, baize_engine.distributed.watch
baize_engine.distributed.member._machine = lambda: f"of {rank}"
baize_engine.distributed.watch.SILENCE = 3
"""
STOPPED = "import baize_engine.distributed.watch\nbaize_engine.distributed.watch.SILENCE_HERE = 3\n"
IN_ALL_GATHER = JOIN + "ready()\nwhile True:\n    gather(ranks)"
IN_RECEIVE = JOIN + "ready()\nfollow(ranks) if rank else wait()"
PLACES = pytest.mark.parametrize("place", [IN_ALL_GATHER, IN_RECEIVE], ids=["all_gather", "receive"])


@PLACES
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_rank(launch, place: str, victim: int) -> None:
    run = launch(place, 3)
    run.ready()
    run.send(signal.SIGKILL, victim)
    assert run.codes() == [-9 if rank == victim else 1 for rank in range(3)]
    assert run.errors() in (f"baize: {run.who(victim)} {how}\n" for how in ("was killed by signal 9", "ended"))


def test_all_but_one_killed(launch) -> None:
    run = launch(IN_ALL_GATHER, 3)
    run.ready()
    run.send(signal.SIGKILL, 0, 1)
    assert run.codes() == [-9, -9, 1]
    assert run.errors().count("baize: rank") == 1
    assert run.errors().startswith(f"baize: {run.who(0)}") or run.errors().startswith(f"baize: {run.who(1)}")


@PLACES
def test_a_killed_rank_0_that_hosts_the_store(launch, place: str) -> None:
    """In processes in which torch has not been imported when it is told to keep its dumps to itself."""
    run = launch(place, 2, real=True, port=free_port())
    run.ready()
    run.send(signal.SIGKILL, 0)
    assert run.processes[1].wait(60) == 1
    assert run.errors() == f"baize: {run.who(0)} was killed by signal 9\n"


def test_ranks_where_rank_0_hosts_the_store(launch) -> None:
    """It stays until the others have read how the run ends."""
    follow = JOIN + "follow(ranks) if rank else ready()"
    run = launch(follow, 3, port=free_port())
    assert run.codes() == [0, 0, 0]
    killed = launch(IN_RECEIVE, 3, port=free_port())
    killed.ready()
    killed.send(signal.SIGKILL, 1)
    assert killed.codes() == [1, -9, 1]
    assert killed.errors().startswith(f"baize: {killed.who(1)} ")
    assert killed.errors().count("\n") == 1


@PLACES
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_of_another_host(launch, place: str, victim: int) -> None:
    run = launch(APART + place, 3)
    run.ready()
    run.send(signal.SIGKILL, victim)
    assert run.codes() == [-9 if rank == victim else 1 for rank in range(3)]
    assert run.errors().startswith(f"baize: {run.who(victim)} stopped answering ")
    assert run.errors().count("\n") == 1


def test_a_stopped_rank(launch) -> None:
    run = launch(STOPPED + IN_RECEIVE, 3)
    run.ready()
    run.send(signal.SIGSTOP, 1)
    assert [run.processes[rank].wait(60) for rank in (0, 2)] == [1, 1]
    said = re.fullmatch(r"baize: (.*) stopped answering (\d+) s ago\n", run.errors())
    assert said
    assert said[1] == run.who(1)
    assert int(said[2]) >= 3  # more where the others are late to look
    run.send(signal.SIGCONT, 1)  # it finds the verdict
    assert run.codes() == [1, 1, 1]
    assert run.errors().count("\n") == 1


def test_all_stopped_for_a_while_go_on(launch) -> None:
    """As by Ctrl-Z, after which nobody has heard of anybody."""
    code = """
continued = []  # no Event: its lock may be held where the handler comes
signal.signal(signal.SIGCONT, lambda *_: continued.append(1))
ready()
while not continued:
    threading.Event().wait(0.05)
threading.Event().wait(1.5)  # time to take the other for dead
follow(ranks) if rank else 0
"""
    run = launch(STOPPED + JOIN + code, 2)
    run.ready()
    run.send(signal.SIGSTOP)
    time.sleep(4)  # longer than a silence
    run.send(signal.SIGCONT)
    assert run.codes() == [0, 0]
    assert run.errors() == ""


def test_a_rank_that_never_comes(launch) -> None:
    """The second is counted from when the two have met, however far apart they started."""
    code = """
import time
from baize_engine.distributed import ranks, watch
connect, judge = ranks.RunStore, watch.Watch._judge

def judge_later(self):
    if 1 - rank not in self._seen:
        self._until = time.monotonic() + self._limit
    return judge(self)

ranks.RunStore = lambda world, limit, **how: connect(world, 60, **how)
watch.Watch._judge = judge_later
Ranks.join(world, "cpu", limit=1)
"""
    run = launch(code, 4, came=range(2))
    assert run.codes() == [1, 1]
    assert run.errors() == "baize: ranks 2, 3 did not join within 1 s\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_while_the_others_wait_for_one_more(launch, rank: int) -> None:
    run = launch(JOIN, 4, came=range(3))
    run.entered(0, 1, 2)
    run.send(signal.SIGKILL, rank)
    assert run.codes() == [-9 if each == rank else 1 for each in range(3)]
    assert run.errors().startswith(f"baize: {run.who(rank)} ")
    assert run.errors().count("\n") == 1


@pytest.mark.parametrize("fails", [0, 2])
def test_a_rank_that_reports_its_failure(launch, fails: int) -> None:
    code = JOIN + f"ranks.fail(ValueError('no such file')) if rank == {fails} else gather(ranks)"
    run = launch(code, 3)
    assert run.codes() == [1, 1, 1]
    assert run.errors() == f"baize: rank {fails} ({socket.gethostname()}): no such file\n"


def test_a_rank_that_ends_before_the_run(launch) -> None:
    run = launch(JOIN + "sys.exit(0) if rank == 1 else threading.Event().wait()", 3)
    assert run.codes() == [1, 1, 1]
    assert run.errors() == f"baize: {run.who(1)} ended before the run did\n"


@PLACES
def test_sigterm_to_all_ends_all_quietly(launch, place: str) -> None:
    run = launch(place, 3)
    run.ready()
    run.send(signal.SIGTERM)
    assert run.codes() == [TERMINATED] * 3
    assert run.errors() == ""


def test_sigterm_to_one_rank_names_it(launch) -> None:
    run = launch(IN_RECEIVE, 3)
    run.ready()
    run.send(signal.SIGTERM, 2)
    assert run.codes() == [1, 1, TERMINATED]
    assert run.errors() == f"baize: {run.who(2)} was terminated\n"


def test_sigterm_after_a_death_leaves_the_message(launch) -> None:
    """As torchrun does it."""
    run = launch(IN_ALL_GATHER, 3)
    run.ready()
    run.send(signal.SIGKILL, 1)
    run.processes[1].wait(60)
    run.send(signal.SIGTERM, 0, 2)
    assert run.codes() == [1, -9, 1]
    assert run.errors().startswith(f"baize: {run.who(1)} ")
    assert run.errors().count("\n") == 1


def test_a_program_that_cleans_up_after_sigterm_may(launch) -> None:
    """The handler of rank 0's own raises, and the run ends in order."""
    code = """
def clean_up(number, frame):
    raise SystemExit(130)

signal.signal(signal.SIGTERM, clean_up)
"""
    run = launch(code + IN_RECEIVE, 2)
    run.ready()
    run.send(signal.SIGTERM, 0)
    assert run.codes() == [130, 0]
    assert run.errors() == ""


def test_ctrl_c_is_for_rank_0(launch) -> None:
    code = (
        JOIN
        + """
if rank:
    ready()
    follow(ranks)
try:
    ready()
    wait()
except KeyboardInterrupt:
    ranks.tell("gather")
    ranks.flush()
    gather(ranks)
"""
    )
    run = launch(code, 3)
    run.ready()
    run.send(signal.SIGINT)
    assert run.codes() == [0, 0, 0]
    assert run.errors() == ""


@pytest.mark.slow
def test_kills_at_any_moment(launch) -> None:
    """From the first import on; before it has joined, a rank is one that never comes."""
    rng = random.Random(20)
    for _ in range(20):
        run = launch('ranks = Ranks.join(world, "cpu", limit=10)\n' + IN_ALL_GATHER.removeprefix(JOIN), 3)
        for _ in range(rng.randrange(10**7)):
            pass
        victim = rng.randrange(3)
        run.send(signal.SIGKILL, victim)
        assert run.codes() == [-9 if rank == victim else 1 for rank in range(3)]
        assert run.errors().startswith(f"baize: rank {victim} ")
        assert run.errors().count("\n") == 1
