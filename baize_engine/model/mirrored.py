"""Calls that rank 0 makes on what runs its model, and that the other ranks mirror on theirs.

Ranks hold parts of one model, each with a cache and buffers of its own, and must make the same calls in the same order: they
meet in the exchanges of a step. Rank 0 decides; a `mirrored` method sends each of its calls to the others, and they make the
call, too (followers.py). Knows neither processes nor how messages travel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from baize_engine.model.buffers import CachedTokens

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class MirroredCall:
    """A call of the method `method` of the object `of`, of which every rank has one."""

    of: str
    method: str
    arguments: tuple[Any, ...]


class Channel(Protocol):
    """The way of rank 0's calls to the other ranks."""

    def tell(self, message: MirroredCall) -> None:
        """Queues a message, on rank 0."""

    def flush(self) -> None:
        """Sends what is queued."""

    def abandon(self) -> None:
        """Ends the other ranks after a call failed on rank 0, in the middle of which they wait."""


@dataclass
class SequenceMirror:
    """What a run needs of a sequence, on a rank other than 0. Rank 0's also has its prompt, its text and its reader."""

    block_table: list[int]
    num_cached: int
    token_ids: list[int] = field(default_factory=list)  # the last one only
    num_left: int = 0
    num_in_flight: int = 0
    seed: int = 0
    index: int = 0
    stop_ids: Collection[int] = ()
    on_host: bool = False
    row: int = -1
    num_blocks_sent: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def params(self) -> SequenceMirror:
        """Its sampling parameters: those of a greedy row, as tokens are chosen on rank 0."""
        return self

    @classmethod
    def of(cls, sequence: CachedTokens) -> SequenceMirror:
        mirror = cls(list(sequence.block_table), sequence.num_cached)
        if tokens := getattr(sequence, "token_ids", None):
            mirror.token_ids = tokens[-1:]
        for name in ("num_left", "num_in_flight", "stop_ids"):
            setattr(mirror, name, getattr(sequence, name, getattr(mirror, name)))
        return mirror


class Mirrored:
    """Something of which every rank has one, called `mirror_name`. Calls of its `mirrored` methods go to a channel."""

    mirror_name: str
    _channel: Channel | None = None

    def lead(self, channel: Channel | None) -> None:
        """Sends calls to `channel` from now on, on rank 0."""
        self._channel = channel


T = TypeVar("T", bound=Mirrored)


def mirrored(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """Calls of `method` are sent with the next call that computes. Calls that the method makes itself are not sent."""
    return _mirroring(method, flush=False)


def mirrored_now(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """As `mirrored`, but sends all calls so far at once: for methods that compute, in which the ranks meet."""
    return _mirroring(method, flush=True)


def _mirroring(method: Callable[Concatenate[T, P], R], flush: bool) -> Callable[Concatenate[T, P], R]:
    @wraps(method)
    def call(this: T, *arguments: P.args, **named: P.kwargs) -> R:
        channel = this._channel
        if channel is None:
            return method(this, *arguments, **named)
        if named:  # followers get what is positional
            raise TypeError(f"{method.__name__} is mirrored on other ranks, wanted positional arguments")
        channel.tell(MirroredCall(this.mirror_name, method.__name__, tuple(_plain(each) for each in arguments)))
        try:
            if flush:
                channel.flush()
            this._channel = None
            return method(this, *arguments, **named)
        except BaseException:
            if flush:
                channel.abandon()
            raise
        finally:
            this._channel = channel

    return call


def _plain(argument: Any) -> Any:
    """The argument as it is sent: sequences by what a run needs of them."""
    if isinstance(argument, list | tuple):
        return [_plain(each) for each in argument]
    return SequenceMirror.of(argument) if hasattr(argument, "block_table") else argument
