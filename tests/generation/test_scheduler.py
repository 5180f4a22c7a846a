"""The policy alone, over a fake model whose cache tells what was written where: nothing is lost, nothing mixed up."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baize_engine.generation.scheduler import Launch, Prefill, PutBack, Read, Request, Scheduler, TakeOut
from baize_engine.model.blocks import BlockPool, CacheFull

STOP = 0


def token_after(history: list[int], seed: int) -> int:
    """The fake model: STOP now and then, else a number that depends on all before it."""
    value = hash((tuple(history), seed)) & 0xFFFF
    return STOP if value % 11 == 0 else value


@dataclass
class Sample:
    """What a device and its host know of a request."""

    request: Request
    seed: int
    most: int
    made: list[int] = field(default_factory=list)  # read by the host
    history: list[int] = field(default_factory=list)  # on the device, with the token that comes next
    saved: list[object] = field(default_factory=list)
    finished: int = 0
    ended: bool = False

    def over(self) -> bool:
        return bool(self.made) and (self.made[-1] == STOP or len(self.made) == self.most)


class FakeMachine:
    """Carries actions out. A row of the cache holds (all ids up to it, whether prefill or a step wrote it)."""

    def __init__(
        self, prompts: list[tuple[list[int], int, int]], blocks: int, size: int, chunk: int, ahead: int
    ) -> None:
        self.pool, self.ahead, self.computed = BlockPool(blocks, size, chunk), ahead, 0
        self.memory: dict[int, object] = {}
        self.samples: list[Sample] = []
        for group, (prompt, most, n) in enumerate(prompts):
            for index in range(n):
                self.samples.append(Sample(Request(prompt, group, most - 1), group * 100 + index, most))
        self.of = {id(sample.request): sample for sample in self.samples}
        self.steps: deque[list[tuple[Sample, int]]] = deque()
        self.order: list[int] = []
        self.actions: list[object] = []

    @staticmethod
    def would_make(prompt: list[int], most: int, seed: int) -> int:
        """Tokens that the fake model makes after `prompt`."""
        history = list(prompt)
        while len(history) < len(prompt) + most and history[-1] != STOP:
            history.append(token_after(history, seed))
        return len(history) - len(prompt)

    def run(self, max_rows: int, chunk: int) -> None:
        self.scheduler = Scheduler(self.pool, [sample.request for sample in self.samples], max_rows, chunk)
        while action := self.scheduler.next(bool(self.steps)):
            self.actions.append(action)
            self.check_blocks(max_rows)
            if isinstance(action, Prefill):
                self.prefill(action)
            elif isinstance(action, Launch):
                self.launch(action)
            elif isinstance(action, TakeOut):
                assert not self.steps, "a request was taken out while its tokens were on their way"
                self.of[id(action.request)].saved = [
                    self.memory.get(self.slot(action.blocks, n)) for n in range(action.request.taken_out)
                ]
            elif isinstance(action, PutBack):
                sample, sequence = self.of[id(action.request)], action.request.cached
                for n in range(action.kept * self.pool.block_size, len(sample.saved)):
                    self.memory[self.slot(sequence.blocks, n)] = sample.saved[n]
                self.check_rows(sample)
            if isinstance(action, Read) or len(self.steps) > self.ahead:
                self.read()

    def slot(self, blocks: object, n: int) -> int:
        return blocks[n // self.pool.block_size] * self.pool.block_size + n % self.pool.block_size  # type: ignore[index]

    def prefill(self, action: Prefill) -> None:
        request, sample = action.request, self.of[id(action.request)]
        assert request.cached.length == action.begin < action.end
        self.check_rows(sample)
        for n in range(action.begin, action.end):
            self.memory[self.slot(request.cached.blocks, n)] = (tuple(request.prompt[: n + 1]), "prefill")
        request.cached.length = action.end
        self.computed += action.end - action.begin
        for twin, copy in self.scheduler.wrote(request):
            size = self.pool.block_size
            for n in range(size if copy else 0):
                self.memory[copy[1] * size + n] = self.memory.get(copy[0] * size + n)  # type: ignore[index]
            other = self.of[id(twin)]
            assert twin.prompt == request.prompt
            other.history = [*twin.prompt, token_after(list(twin.prompt), other.seed)]
            other.ended = other.history[-1] == STOP
            self.deliver(other, other.history[-1])

    def launch(self, action: Launch) -> None:
        step = []
        for request in action.requests:
            sample = self.of[id(request)]
            if not sample.ended:  # else the device knows already
                n = len(sample.history) - 1
                self.memory[self.slot(request.cached.blocks, n)] = (tuple(sample.history), "step")
                self.check_rows(sample, n + 1)
                sample.history.append(token_after(sample.history, sample.seed))
                sample.ended = sample.history[-1] == STOP
            step.append((sample, sample.history[-1]))
        self.steps.append(step)

    def read(self) -> None:
        for sample, token in self.steps.popleft():
            if not sample.finished:
                self.scheduler.read(sample.request)
                self.deliver(sample, token)

    def deliver(self, sample: Sample, token: int) -> None:
        sample.made.append(token)
        if sample.over():
            self.scheduler.finish(sample.request)
            sample.finished += 1
            self.order.append(self.samples.index(sample))

    def check_rows(self, sample: Sample, length: int | None = None) -> None:
        """All that the request reads is its own history, and each row was written the way it always is."""
        ids = sample.history or list(sample.request.prompt)
        for n in range(sample.request.cached.length if length is None else length):
            how = "prefill" if n < len(sample.request.prompt) else "step"
            assert self.memory[self.slot(sample.request.cached.blocks, n)] == (tuple(ids[: n + 1]), how)

    def check_blocks(self, max_rows: int) -> None:
        held = [sample.request.cached for sample in self.samples if sample.request.sequence]
        assert len(held) <= max_rows
        assert len({block for sequence in held for block in sequence.blocks}) + self.pool.free_blocks == (
            self.pool.num_blocks
        )

    def check_done(self) -> None:
        assert [sample.finished for sample in self.samples] == [1] * len(self.samples)
        assert self.pool.free_blocks == self.pool.num_blocks
        for sample in self.samples:
            history = list(sample.request.prompt)
            for token in sample.made:
                assert token == token_after(history, sample.seed)
                history.append(token)


@st.composite
def prompts(draw: st.DrawFn) -> list[tuple[list[int], int, int]]:
    """(ids, most tokens, n), with common beginnings."""
    stem = draw(st.lists(st.integers(1, 3), min_size=0, max_size=24))
    many = []
    for _ in range(draw(st.integers(1, 8))):
        ids = stem[: draw(st.integers(0, len(stem)))] + draw(st.lists(st.integers(1, 3), min_size=1, max_size=12))
        many.append((ids, draw(st.integers(1, 20)), draw(st.sampled_from([1, 1, 1, 2, 5]))))
    return many


@settings(max_examples=300, deadline=None)
@given(prompts(), st.integers(0, 20), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.integers(1, 9),
       st.sampled_from([1, 2, 5]), st.integers(0, 2))  # fmt: skip
@example([([1] * 8, 20, 5), ([1] * 9, 20, 5)], 0, 4, 1, 9, 1, 2)
def test_every_request_finishes_once_with_its_own_tokens(
    many: list[tuple[list[int], int, int]], spare: int, size: int, blocks_a_chunk: int, max_rows: int, pieces: int,
    ahead: int,
) -> None:  # fmt: skip
    """Whatever the pool's size, as long as the longest request fits: nothing leaks, nothing is shared by mistake."""
    share = size * blocks_a_chunk
    least = max(-(-(len(ids) + most) // size) for ids, most, _ in many)
    machine = FakeMachine(many, least + spare, size, share, ahead)
    machine.run(max_rows, share * pieces)
    machine.check_done()


def test_requests_of_equal_length_finish_in_their_order() -> None:
    many = [([1, 2, 3, number], 1, 1) for number in range(4, 20)]
    machine = FakeMachine(many, 20, 4, 4, 0)
    machine.run(3, 4)
    machine.check_done()
    assert machine.order == list(range(16))


def test_equal_beginnings_are_computed_once() -> None:
    stem = list(range(1, 65))
    many = [([*stem, 100 + number], 2, 1) for number in range(10)]
    machine = FakeMachine(many, 100, 4, 4, 0)
    machine.run(4, 16)
    machine.check_done()
    assert machine.computed == 64 + 10


def test_samples_of_a_prompt_compute_it_once_and_share_its_blocks() -> None:
    machine = FakeMachine([(list(range(1, 11)), 3, 8)], 3 + 8 * 2, 4, 8, 0)
    machine.run(8, 8)
    machine.check_done()
    assert machine.computed == 10


def test_a_request_that_never_fits_is_refused_and_leaves_nothing() -> None:
    machine = FakeMachine([([1] * 30, 5, 1)], 4, 4, 4, 0)
    with pytest.raises(CacheFull, match="raise cache_tokens"):
        machine.run(4, 16)
    assert machine.pool.free_blocks == 4


def test_a_long_prompt_comes_in_pieces_between_steps() -> None:
    machine = FakeMachine([([1, 2, 3], 20, 1), ([5] * 32, 2, 1)], 40, 4, 4, 0)
    machine.samples[0].seed = next(
        seed for seed in range(1000) if machine.would_make([1, 2, 3], 20, seed) == 20
    )  # no stop before
    machine.run(2, 4)
    machine.check_done()
    kinds = [type(action).__name__[0] for action in machine.actions]
    assert "".join(kinds[:12]) == "PPPPPLPLPLPLPL"[:12]


def test_the_youngest_makes_room_and_comes_back() -> None:
    many = [([1, 2, 3, 4], 20, 1), ([5, 6, 7, 8], 20, 1)]
    machine = FakeMachine(many, 8, 4, 4, 0)
    for sample in machine.samples:
        prompt = list(sample.request.prompt)
        sample.seed = next(seed for seed in range(1000) if machine.would_make(prompt, 20, seed) == 20)
    machine.run(2, 4)
    machine.check_done()
    moved = [action for action in machine.actions if isinstance(action, TakeOut | PutBack)]
    assert [type(action) for action in moved] == [TakeOut, PutBack]
    assert {action.request for action in moved} == {machine.samples[1].request}
    assert moved[1].kept == 0  # its last token is always computed: a chunk is known only where more follows
    assert machine.order == [0, 1]
