"""Batches of messages from rank 0 to the others."""

from __future__ import annotations

HEAD = """
import pickle
import torch.distributed as dist
from baize_engine.distributed.messages import BLOCK, LENGTH, Receiver, Sender
dist.init_process_group("gloo")
group = dist.group.WORLD

def messages(length):
    "A batch of which this many bytes are sent."
    empty = len(pickle.dumps([b""], pickle.HIGHEST_PROTOCOL))
    batch = [bytes(length - empty)]
    while (more := length - len(pickle.dumps(batch, pickle.HIGHEST_PROTOCOL))):
        batch = [bytes(len(batch[0]) + more)]
    return batch

LENGTHS = [100, BLOCK - LENGTH - 1, BLOCK - LENGTH, BLOCK - LENGTH + 1, BLOCK, 1 << 20]
"""


def test_batches_of_all_lengths_come_whole_and_in_order(launch) -> None:
    code = """
if rank == 0:
    sender = Sender(group)
    for length in LENGTHS:
        for message in messages(length):
            sender.tell(message)
        sender.flush()
    sender.end()
else:
    receiver = Receiver(group)
    for length in LENGTHS:
        assert receiver.receive() == messages(length), length
    assert receiver.receive() is None
ready()
dist.barrier()
dist.destroy_process_group()
"""
    run = launch(HEAD + code, 3)
    assert run.codes() == [0, 0, 0], run.errors()
    run.ready()


def test_what_is_queued_goes_as_one_and_what_was_not_sent_at_the_end_does_not(launch) -> None:
    code = """
if rank == 0:
    sender = Sender(group)
    sender.flush()
    sender.tell({"a": 1})
    sender.tell(None)
    sender.flush()
    sender.flush()
    sender.tell("too late")
    sender.end()
else:
    receiver = Receiver(group)
    assert receiver.receive() == [{"a": 1}, None]
    assert receiver.receive() is None
ready()
dist.barrier()
dist.destroy_process_group()
"""
    run = launch(HEAD + code, 2)
    assert run.codes() == [0, 0], run.errors()
    run.ready()
