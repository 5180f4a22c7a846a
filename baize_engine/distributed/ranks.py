"""The processes of a run, from joining to the end that they have in common. Knows no model."""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import ClassVar, NoReturn

import torch
import torch.distributed as dist

from baize_engine.distributed.agreement import difference
from baize_engine.distributed.exchange import Exchange
from baize_engine.distributed.messages import Receiver, Sender
from baize_engine.distributed.store import GONE, RunStore
from baize_engine.distributed.verdict import Verdict
from baize_engine.distributed.watch import Watch
from baize_engine.distributed.world import World
from baize_engine.errors import DistributedError

# Seconds from the first rank to join to the last: importing torch from a network disk takes most of a minute.
ARRIVAL = 60.0
LEAVING = 3.0  # seconds that rank 0, where it hosts the store, waits for the others to read there that it leaves
EQUAL = "equal"  # what the comparison finds where nothing differs
FOREVER = timedelta(days=365)  # of torch's own limits: a chat may be idle for days, and failure is the watch's to find


class Ranks:
    """This process as one of the ranks of a model. All ranks make the same calls, unless a docstring names the rank.

    A call whose connection breaks does not return: the watch ends the process with the message that names the reason.
    """

    _joined: ClassVar[bool] = False  # this process, whatever became of it

    def __init__(self, world: World, watch: Watch, store: RunStore, group: dist.ProcessGroup, device: str) -> None:
        """Use `join`."""
        self.world = world
        self.exit_code = 0  # with which a rank ends whose `receive` gave None
        self._watch, self._store = watch, store
        self._exchange = Exchange(group, dist.new_group(backend="gloo", timeout=FOREVER))
        self._sender = Sender(group) if world.rank == 0 else None
        self._receiver = Receiver(group) if world.rank > 0 else None
        self._on_gpu = device != "cpu"
        self._pid = os.getpid()
        self._left = False
        self._agreements = 0  # so far
        atexit.register(self._at_exit)

    @classmethod
    def join(cls, world: World, device: str, *, limit: float = ARRIVAL) -> Ranks:
        """Meet the other ranks, each of which must come within `limit` seconds. `device`: "cpu", "cuda" or "cuda:N".

        DistributedError if there is no store to meet by, on ranks 0 and 1; those above exit with 1. Whatever else fails ends
        the process, as all later failures do.
        """
        if cls._joined:
            raise DistributedError("the ranks of this run have ended, and a process can join only one run")
        if dist.is_initialized():
            raise DistributedError("torch.distributed is already in use in this process; ranks form their own groups")
        world.set_torch_defaults()
        cls._joined = True
        try:
            store = RunStore(world, limit, first=True)
        except DistributedError:
            if world.rank <= 1:  # with no store there is no way to agree who tells
                raise
            raise SystemExit(1) from None
        watch = Watch(world, RunStore(world, limit), limit)
        watch.arrived.wait()
        try:
            group = _group(world, store, device)
        except RuntimeError as error:
            _give_up(watch, error)
        return cls(world, watch, store, group, device)

    @property
    def rank(self) -> int:
        return self.world.rank

    def agree(self, what: Mapping[str, str]) -> None:
        """Compare what every rank gives: its version, options, the digest of its files, ...; the first that differs counts.

        DistributedError on rank 0, which names the ranks and both values; the others end with 1 and print nothing.
        """
        try:
            found = self._compared(what)
        except RuntimeError as error:
            _give_up(self._watch, error)
        if found == EQUAL:
            return
        self.leave(failed=True)
        if self.world.rank > 0:
            raise SystemExit(1)
        raise DistributedError(found)

    def _compared(self, what: Mapping[str, str]) -> str:
        ranks = range(self.world.size)
        self._agreements += 1
        mine = f"{self._agreements}"
        self._store.give(f"{mine}/{self.world.rank}", json.dumps(dict(what)))
        if self.world.rank > 0:
            return self._store.given(f"{mine}/found")
        hosts = [member.host for member in self._store.members(ranks)]
        found = difference(hosts, [json.loads(self._store.given(f"{mine}/{rank}")) for rank in ranks]) or EQUAL
        if found != EQUAL:
            self._watch.post(Verdict("", code=1))
        self._store.give(f"{mine}/found", found)
        return found

    def all_gather(self, part: torch.Tensor, out: torch.Tensor) -> None:
        """Write every rank's `part` to its row of `out`, (size, *part.shape), both contiguous, of one dtype and device.

        On a GPU this is queued on the current stream, and can be captured in a graph. From one thread at a time.
        """
        try:
            self._exchange.all_gather(part, out)
        except RuntimeError as error:
            _give_up(self._watch, error)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Write rank 0's contiguous `tensor` to that of the others. On a GPU as all_gather."""
        try:
            self._exchange.broadcast(tensor)
        except RuntimeError as error:
            _give_up(self._watch, error)

    def tell(self, message: object) -> None:
        """Rank 0: queue a picklable message for all others. Once it has left, or in a forked child, there is nobody to tell."""
        sender = self._sending()
        if self.here:
            sender.tell(message)

    def flush(self) -> None:
        """Rank 0: send the queued messages as one batch, without waiting for it to arrive; the next flush waits for that.

        DistributedError once this rank has left, and in a forked child, whose connections are its parent's.
        """
        sender = self._sending()
        if not self.here:
            raise DistributedError("the other ranks have ended, or are those of this process's parent")
        try:
            sender.flush()
        except RuntimeError as error:
            _give_up(self._watch, error)

    def receive(self) -> Sequence[object] | None:
        """Others: wait for the messages of rank 0's next flush; None when it has ended: `leave`, exit with `exit_code`."""
        if self._receiver is None:
            raise ValueError("rank 0 sends and does not receive")
        try:
            messages = self._receiver.receive()
            if messages is None:
                self.exit_code = self._store.verdict_in_order().code
            return messages
        except RuntimeError as error:
            _give_up(self._watch, error)

    @property
    def here(self) -> bool:
        """Whether this process still is a rank: it has not left, and is no child of one by fork."""
        return not self._left and os.getpid() == self._pid

    def abandon(self) -> None:
        """Rank 0: `leave` after a failure in a computation of all ranks, in the middle of which the others wait."""
        self.leave(failed=True)

    def leave(self, *, failed: bool = False) -> None:
        """End in order: rank 0, which all others follow, with 1 if `failed`; another rank after `receive` gave None.

        Called at exit where it was not before. A second call, or one in a forked child, does nothing.
        """
        if not self.here:
            return
        self._left = True
        atexit.unregister(self._at_exit)
        try:
            self._say_goodbye(failed)
        except RuntimeError as error:
            _give_up(self._watch, error)
        if not (failed and self._on_gpu):  # NCCL would first wait for kernels that wait for ranks that are gone
            dist.destroy_process_group()

    def _say_goodbye(self, failed: bool) -> None:
        if self._sender is not None:
            verdict = self._watch.post(Verdict("", code=int(failed)))
            if not verdict.in_order:
                self._watch.wait_for_the_end()
            self._sender.end()
            self._watch.stop()  # before the wait, which it would end, and the process with the verdict's code
            if self.world.hosts_store:
                self._store.wait_for_readers(range(1, self.world.size), LEAVING)
            return
        verdict = self._watch.post(Verdict(f"{self._watch.me} ended before the run did"))
        if not verdict.in_order:
            self._watch.wait_for_the_end()
        self._watch.stop()  # before rank 0 may go
        self._store.has_read()

    def fail(self, error: BaseException) -> NoReturn:
        """End all ranks with 1 and one line on stderr: "baize: rank 1 (host): " and the error's message."""
        _report(self._watch, error)

    def _sending(self) -> Sender:
        if self._sender is None:
            raise ValueError("rank 0 alone sends messages")
        return self._sender

    def _at_exit(self) -> None:
        self.leave(
            failed=getattr(sys, "last_value", None) is not None
        )  # which Python sets before it prints a traceback


def _group(world: World, store: RunStore, device: str) -> dist.ProcessGroup:
    """Gloo for the host's tensors, and NCCL for a GPU's, whose communicator is made at once: no graph can make it."""
    chosen = None
    if device.startswith("cuda"):
        chosen = torch.device("cuda", world.local_rank if ":" not in device else int(device[5:]))
        torch.cuda.set_device(chosen)
    dist.init_process_group(  # `device_id` is what makes the communicator at once
        "cpu:gloo,cuda:nccl" if chosen else "gloo",
        store=store.for_groups(),
        rank=world.rank,
        world_size=world.size,
        timeout=FOREVER,
        device_id=chosen,
    )
    group = dist.group.WORLD
    assert group is not None  # as it was just made
    return group


def _give_up(watch: Watch, error: RuntimeError) -> NoReturn:
    """A connection broke. The reason is a rank that ended, which the watch finds; if it does not, the error is the reason."""
    watch.wait_for_the_end()
    _report(watch, error)


def _report(watch: Watch, error: BaseException) -> NoReturn:
    reason = str(error).partition("\n")[0] or type(error).__name__
    with suppress(*GONE):  # then the watch says why
        watch.post(Verdict(f"rank {watch.me.rank} ({watch.me.host}): {reason}"))
    watch.wait_for_the_end()
    os._exit(1)
