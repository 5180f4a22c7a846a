"""What rank 0 tells the others: picklable messages, sent in batches over gloo. Knows no content."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import torch
import torch.distributed as dist

from baize_engine.distributed.gloo import gloo

TAG = 0
BLOCK = 4096  # bytes of a batch that go with its length; what is longer follows in a second piece
LENGTH = 8  # bytes of the length before the batch
END = 0  # as a length: there are no more messages


class Sender:
    """Rank 0's side. A batch is on its way while rank 0 goes on; the next waits until every rank has begun to read it."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._gloo = gloo(group)
        self._peers = range(1, group.size())
        self._queue: list[object] = []
        self._sent: list[dist.Work] = []
        self._held: list[torch.Tensor] = []  # what gloo may still read

    def tell(self, message: object) -> None:
        """Queue a picklable message for all other ranks."""
        self._queue.append(message)

    def flush(self) -> None:
        """Send what is queued, if anything is."""
        if self._queue:
            content = pickle.dumps(self._queue, pickle.HIGHEST_PROTOCOL)
            self._queue = []
            for work in self._sent:
                work.wait()
            self._sent, self._held = [], []
            self._send(len(content), content)

    def end(self) -> None:
        """Tell the others that no message follows, not even those still queued."""
        self._send(END, b"")  # waits for nobody: a rank may never come to read it

    def _send(self, length: int, content: bytes) -> None:
        first = bytearray(BLOCK)
        first[:LENGTH] = length.to_bytes(LENGTH, "little")
        head, rest = content[: BLOCK - LENGTH], content[BLOCK - LENGTH :]
        first[LENGTH : LENGTH + len(head)] = head
        pieces = [torch.frombuffer(piece, dtype=torch.uint8) for piece in (first, bytearray(rest)) if piece]
        self._held += pieces
        self._sent += [self._gloo.send([piece], peer, TAG) for piece in pieces for peer in self._peers]


class Receiver:
    """The side of every other rank."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._gloo = gloo(group)
        self._block = torch.empty(BLOCK, dtype=torch.uint8)
        self._coming = self._gloo.recv([self._block], 0, TAG)  # asked for ahead, so that rank 0 need not wait to send

    def receive(self) -> Sequence[object] | None:
        """Wait for the next batch of messages; None if rank 0 has ended in order."""
        self._coming.wait()
        block = self._block.numpy().tobytes()
        length = int.from_bytes(block[:LENGTH], "little")
        if length == END:
            return None
        content = block[LENGTH : LENGTH + length]
        if len(content) < length:
            rest = torch.empty(length - len(content), dtype=torch.uint8)
            self._gloo.recv([rest], 0, TAG).wait()
            content += rest.numpy().tobytes()
        self._coming = self._gloo.recv([self._block], 0, TAG)
        messages: Sequence[object] = pickle.loads(content)
        return messages
