"""Links of gloo: what one end sends, the other receives, in order, whatever its size."""

from __future__ import annotations

HEAD = """
import torch.distributed as dist
from baize_engine.distributed.gloo import gloo
from baize_engine.distributed.link import BLOCK, Link
dist.init_process_group("gloo")
up, down = gloo(dist.group.WORLD), gloo(dist.new_group(backend="gloo"))
link = Link(1, up, down) if rank == 0 else Link(0, down, up)

def made(count, of):
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(of)).to(torch.uint8)
"""


def test_what_is_sent_arrives_in_order(launch) -> None:
    code = """
sizes = (1, BLOCK, 0, BLOCK + 1, 7, 3 * BLOCK + 5)
if rank == 0:  # all of it before any is received
    sent = [(tensor, link.send(tensor)) for number, size in enumerate(sizes) for tensor in [made(size, number)]]
    for _, works in sent:
        for work in works:
            work.wait()
else:
    for number, size in enumerate(sizes):
        out = torch.empty(size, dtype=torch.uint8)
        link.receive(out)
        assert out.equal(made(size, number)), size
ready()
dist.barrier()
dist.destroy_process_group()
"""
    run = launch(HEAD + code, 2)
    assert run.codes() == [0, 0], run.errors()
    run.ready()


def test_both_ends_may_send_before_they_receive(launch) -> None:
    code = """
for number in range(200):
    works = link.send(made(5000, 2 * number + rank))
    out = torch.empty(5000, dtype=torch.uint8)
    link.receive(out)
    assert out.equal(made(5000, 2 * number + 1 - rank)), number
    for work in works:
        work.wait()
ready()
dist.destroy_process_group()
"""
    run = launch(HEAD + code, 2)
    assert run.codes() == [0, 0], run.errors()
    run.ready()
