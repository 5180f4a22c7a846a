"""An engine over a decoder that stops in the middle of every computation, and calls of it from many threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fake_engine import TOKENIZER, engine_over
from fakes import VOCAB, FakeCache, TableDecoder

from baize_engine import Engine, SamplingParams

LONG = SamplingParams(ignore_eos=True, max_new_tokens=40)


class Pausing(TableDecoder):
    """Calls `at_step`, if it is set, in the middle of every computation."""

    def __init__(self) -> None:
        super().__init__(VOCAB)
        self.at_step: Callable[[], None] | None = None

        self.steps: list[list[list[int]]] = []

    def forward(self, token_ids, sequences):  # type: ignore[no-untyped-def]
        if self.at_step is not None:
            self.at_step()
        self.steps.append(token_ids)
        return super().forward(token_ids, sequences)


def pausing(blocks: int = 64) -> tuple[Engine, Pausing]:
    decoder, cache = Pausing(), FakeCache(blocks)
    return engine_over(decoder, cache, tokenizer=TOKENIZER), decoder


def held_blocks(engine: Engine) -> int:
    pool = engine._serving.loop.pool
    return pool.num_blocks - pool.free_blocks


def in_threads(call: Callable[[int], None], count: int = 8) -> None:
    """Calls it from so many threads that begin together; raises what one of them raised."""
    begin = threading.Barrier(count)

    def one(number: int) -> None:
        begin.wait()
        call(number)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(one, number) for number in range(count)]:
            done.result()


def fail_once(decoder: Pausing) -> None:
    """The next step raises MemoryError."""

    def fail() -> None:
        decoder.at_step = None
        raise MemoryError("no room")

    decoder.at_step = fail


def join_driver() -> None:
    """The thread that steps for coroutines ends when none is left."""
    for thread in threading.enumerate():
        if thread.name == "baize-async":
            thread.join(60)
            assert not thread.is_alive()
