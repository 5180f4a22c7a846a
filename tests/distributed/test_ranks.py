"""Ranks that work together and end in order: what they exchange, agree on and tell, and their exit codes."""

from __future__ import annotations

import socket

import pytest
from ports import free_port

WORK = """
ranks = Ranks.join(world, "cpu", limit=30)
ranks.agree({"version": "1", "dtype": "float16"})
gather(ranks)
word = torch.tensor([5, 6], dtype=torch.int32) if rank == 0 else torch.zeros(2, dtype=torch.int32)
ranks.broadcast(word)
assert word.tolist() == [5, 6]
if rank == 0:
    ranks.tell(("short", 1))
    ranks.tell(b"long" * 5000)
    ranks.flush()
    ranks.flush()  # of nothing sends nothing
    ranks.tell("second")
    ranks.flush()
    ranks.leave()
    ranks.leave()  # does nothing
else:
    assert ranks.receive() == [("short", 1), b"long" * 5000]
    assert ranks.receive() == ["second"]
    assert ranks.receive() is None
    ranks.leave()
ready(ranks.exit_code)
"""
FOLLOW = """
ranks = Ranks.join(world, "cpu", limit=30)
if rank > 0:
    follow(ranks)
ranks.tell("gather")
ranks.flush()
gather(ranks)
"""
HOST = socket.gethostname()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_exchange_and_end(launch, size: int) -> None:
    run = launch(WORK, size)
    assert run.codes() == [0] * size, run.errors()
    assert [lines.read() for lines in run.lines.values()] == [b"ready 0\n"] * size
    assert run.errors() == ""


@pytest.mark.parametrize(
    ("ending", "codes", "last_line"),
    [
        ("", [0, 0], ""),
        ("sys.exit(3)", [3, 0], ""),
        ("ranks.leave(failed=True)", [0, 1], ""),
        ("raise ValueError('of the script')", [1, 1], "ValueError: of the script"),
        ("torch.zeros(1)\nos.kill(os.getpid(), signal.SIGINT)\nthreading.Event().wait()", [-2, 1], "KeyboardInterrupt"),
    ],
)
def test_the_others_end_as_rank_0_does(launch, ending: str, codes: list[int], last_line: str) -> None:
    run = launch(FOLLOW + ending, 2)
    assert run.codes() == codes, run.errors()
    assert (run.errors().splitlines() or [""])[-1].endswith(last_line)
    assert "baize:" not in run.errors()


def test_a_rank_in_a_collective_ends_too_when_rank_0_does(launch) -> None:
    """It cannot come to read what rank 0 told it before, nor that there is no more."""
    code = """
ranks = Ranks.join(world, "cpu", limit=30)
if rank == 1:
    gather(ranks)
ranks.tell(bytes(1 << 20))
ranks.flush()
"""
    run = launch(code, 2)
    assert run.codes() == [0, 0]
    assert run.errors() == ""


@pytest.mark.parametrize(
    ("differs", "message"),
    [
        (
            "{'dtype': 'float16' if rank == 2 else 'bfloat16'}",
            f"rank 2 ({HOST}) has dtype float16; rank 0 ({HOST}) has bfloat16",
        ),
        (
            "{'version': '1', **({'files': 'ab'} if rank else {})}",
            f"ranks 1 ({HOST}), 2 ({HOST}) have files ab; rank 0 ({HOST}) has none",
        ),
    ],
)
def test_rank_0_names_what_differs_and_the_others_end_quietly(launch, differs: str, message: str) -> None:
    code = f"""
from baize_engine.errors import DistributedError
ranks = Ranks.join(world, "cpu", limit=30)
try:
    ranks.agree({differs})
except DistributedError as error:
    ready(error)
    sys.exit(7)
"""
    run = launch(code, 3)
    assert run.codes() == [7, 1, 1]
    assert [lines.read().decode() for lines in run.lines.values()] == [f"ready {message}\n", "", ""]
    assert run.errors() == ""


def test_rank_0_keeps_its_code_while_it_waits_for_a_slow_rank(launch) -> None:
    """Which is stopped, and cannot read in the store of rank 0 that the run ends."""
    code = """
from baize_engine.distributed import ranks as module, watch
watch.ORDERLY, module.LEAVING = 0.1, 1.5  # the first must not count for rank 0, which waits for the second
ranks = Ranks.join(world, "cpu", limit=30)
ready()
ranks.agree({})  # the other is ready, too
if rank > 0:
    threading.Event().wait()
os.kill(ranks._store.members([1])[0].pid, signal.SIGSTOP)
print("last words")
sys.exit(3)
"""
    run = launch(code, 2, real=True, port=free_port())
    run.ready()
    assert run.processes[0].wait(60) == 3
    assert run.lines[0].read() == b"last words\n"


def test_a_forked_child_is_no_rank(launch) -> None:
    """It ends, by itself or by SIGTERM, and the run goes on."""
    code = """
import warnings
from baize_engine.errors import DistributedError
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # since Python 3.12
ranks = Ranks.join(world, "cpu", limit=30)
if rank > 0:
    follow(ranks)
def tells():
    ranks.tell("gather")  # nobody hears it
    try:
        ranks.flush()
    except DistributedError:
        sys.exit(6)

for ends in (lambda: sys.exit(5), lambda: os.kill(os.getpid(), signal.SIGTERM), tells):
    if (child := os.fork()) == 0:
        ends()
    ready(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
ranks.tell("gather")
ranks.flush()
gather(ranks)
"""
    run = launch(code, 2)
    assert run.codes() == [0, 0], run.errors()
    assert run.lines[0].read() == b"ready 5\nready -15\nready 6\n"
    assert run.errors() == ""


def test_calls_of_the_wrong_rank_and_shape_are_refused(launch) -> None:
    code = """
ranks = Ranks.join(world, "cpu", limit=30)
part = torch.zeros(2, 3)
for wrong in (
    lambda: ranks.tell(1) if rank else ranks.receive(),
    lambda: ranks.all_gather(part, torch.zeros(3, 2, 3)),
    lambda: ranks.all_gather(part, torch.zeros(2, 2, 3, dtype=torch.float16)),
    lambda: ranks.all_gather(part.T, torch.zeros(2, 3, 2)),
):
    try:
        wrong()
    except ValueError:
        ready()
gather(ranks)
if rank > 0:
    follow(ranks)
"""
    run = launch(code, 2)
    assert run.codes() == [0, 0], run.errors()
    assert [lines.read() for lines in run.lines.values()] == [b"ready\n" * 4] * 2


def test_a_process_joins_one_run(launch) -> None:
    code = """
from baize_engine.errors import DistributedError
ranks = Ranks.join(world, "cpu", limit=30)
follow(ranks) if rank else ranks.leave()
try:
    Ranks.join(world, "cpu", limit=30)
except DistributedError as error:
    ready(error)
"""
    run = launch(code, 2)
    assert run.codes() == [0, 0], run.errors()
    assert run.lines[0].read() == b"ready the ranks of this run have ended, and a process can join only one run\n"


def test_a_program_that_has_groups_of_its_own_is_told(launch) -> None:
    code = """
import torch.distributed as dist
from baize_engine.errors import DistributedError
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # others need not have come
try:
    Ranks.join(world, "cpu", limit=30)
except DistributedError as error:
    ready(error)
dist.destroy_process_group()
"""
    run = launch(code, 2)
    assert run.codes() == [0, 0], run.errors()
    assert run.lines[1].read().startswith(b"ready torch.distributed is already in use in this process")


def test_no_store_is_told_by_one_of_the_ranks_that_look_for_it(launch) -> None:
    code = """
from baize_engine.errors import DistributedError
try:
    Ranks.join(world, "cpu", limit=0.5)
except DistributedError as error:
    ready(error)
    sys.exit(7)
"""
    run = launch(code, 4, came=range(1, 4), port=1)
    assert run.codes() == [7, 1, 1], run.errors()
    assert run.lines[1].read().startswith(b"ready the rendezvous store at 127.0.0.1:1 cannot be reached: ")


def test_what_the_program_printed_is_not_lost(launch) -> None:
    code = """
ranks = Ranks.join(world, "cpu", limit=30)
print("half a line", end="")
ranks.fail(ValueError("first\\nsecond")) if rank else gather(ranks)
"""
    run = launch(code, 2)
    assert run.codes() == [1, 1]
    assert [lines.read() for lines in run.lines.values()] == [b"half a line"] * 2
    assert run.errors() == f"baize: rank 1 ({HOST}): first\n"
