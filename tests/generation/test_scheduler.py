"""The policy alone, over a fake model whose cache tells what was written where: nothing is lost, nothing mixed up."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up import at_leisure

from baize_engine.generation.block_pool import BlockPool, CacheFull
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.scheduler import Fail, Launch, Prefill, Read, Scheduler, SwapIn, SwapOut
from baize_engine.generation.scoring import GivenTokens
from baize_engine.generation.sequence import Sequence, Status

STOP = 0


def token_after(history: list[int], seed: int) -> int:
    """The fake model: STOP now and then, else a number that depends on all before it."""
    value = hash((tuple(history), seed)) & 0xFFFF
    return STOP if value % 11 == 0 else value


class Sample(Sequence):
    """A sequence, and what a device knows of it."""

    def __init__(self, prompt: list[int], most: int, seed: int, scored_from: int | None = None) -> None:
        scoring = None if scored_from is None else GivenTokens([*prompt, 1], scored_from)
        super().__init__(prompt, SamplingParams(), most, seed, scoring=scoring)
        self.history: list[int] = []  # on the device, with the token that comes next
        self.rows: list[object] = []  # swapped out
        self.ends = 0
        self.ended = False

    def over(self) -> bool:
        return bool(self.token_ids) and (self.token_ids[-1] == STOP or len(self.token_ids) == self.max_tokens)


class FakeMachine:
    """Carries actions out. A row of the cache holds (all ids up to it, whether prefill or a step wrote it).

    drafts: steps that are launched while none is in flight verify up to so many tokens of a sequence, of which some are wrong.
    """

    def __init__(
        self,
        prompts: list[tuple[list[int], int, int]],
        blocks: int,
        size: int,
        chunk: int,
        ahead: int,
        together: bool = False,
        drafts: int = 0,
    ) -> None:
        self.together, self.drafts, self.drafted = together, drafts, [0, 0]
        self.pool, self.ahead, self.computed = BlockPool(blocks, size, chunk), ahead, 0
        self.memory: dict[int, object] = {}
        self.samples: list[Sample] = []
        for group, (prompt, most, n) in enumerate(prompts):
            for index in range(n):
                self.samples.append(Sample(prompt, most, group * 100 + index))
        self.steps: deque[list[tuple[Sample, int]]] = deque()
        self.order: list[int] = []
        self.started: list[Sequence] = []
        self.actions: list[object] = []
        self.computed_for: dict[Sequence, int] = {}

    @staticmethod
    def would_make(prompt: list[int], most: int, seed: int) -> int:
        """Tokens that the fake model makes after `prompt`."""
        history = list(prompt)
        while len(history) < len(prompt) + most and history[-1] != STOP:
            history.append(token_after(history, seed))
        return len(history) - len(prompt)

    def run(
        self, max_rows: int, chunk: int, late: int = 0, aborted: tuple[int, ...] = (), cuts: Iterable[int] = ()
    ) -> None:
        """All samples; the last `late` are added one by one while others run, and `aborted` after some actions.

        cuts: where the samples before those are cut into calls. Default: one call.
        """
        self.piece = chunk
        self.scheduler = Scheduler(self.pool, max_rows, chunk, self.together)
        first = len(self.samples) - late
        for begin, end in pairwise([0, *sorted(min(cut, first) for cut in cuts), first]):
            self.scheduler.add(self.samples[begin:end])
        coming, leaving = deque(self.samples[first:]), deque(aborted)
        while (action := self.scheduler.schedule(bool(self.steps))) or coming:
            if coming and (action is None or len(self.actions) % 3 == 0):
                self.scheduler.add([coming.popleft()])
            if action is None:
                continue
            self.actions.append(action)
            self.check_blocks(max_rows)
            self.carry_out(action)
            if isinstance(action, Read) or len(self.steps) > self.ahead:
                self.read()
            if leaving and len(self.actions) % 4 == 0:
                victim = self.samples[leaving.popleft()]
                if not victim.finished:
                    self.scheduler.finish(victim)

    def carry_out(self, action: object) -> None:
        if isinstance(action, Prefill):
            self.prefill(action)
        elif isinstance(action, Launch):
            if self.drafts and not self.steps:
                self.verify(action)
            else:
                self.launch(action)
        elif isinstance(action, SwapOut):
            assert not self.steps, "a sequence was swapped out while its tokens were on their way"
            going = [sample for sample in self.started if sample.status is Status.RUNNING]
            assert going, "what has run longest was swapped out"
            assert all(self.started.index(sample) < self.started.index(action.sequence) for sample in going)
            action.sequence.rows = [
                self.memory.get(self.slot(action.blocks, n)) for n in range(action.sequence.num_tokens - 1)
            ]
        elif isinstance(action, SwapIn):
            sample = action.sequence
            for n in range(action.kept * self.pool.block_size, len(sample.rows)):
                self.memory[self.slot(sample.block_table, n)] = sample.rows[n]
            self.check_rows(sample)
        elif isinstance(action, Fail):
            raise action.error

    def slot(self, blocks: list[int], n: int) -> int:
        return blocks[n // self.pool.block_size] * self.pool.block_size + n % self.pool.block_size

    def prefill(self, action: Prefill) -> None:
        assert len(action.pieces) == 1 or self.together
        assert sum(piece.end - piece.begin for piece in action.pieces) <= self.piece
        assert not any(other.status is Status.SWAPPED for other in self.samples), "preempted sequences return first"
        for piece in action.pieces:
            sample = piece.sequence
            assert sample.num_cached == piece.begin < piece.end
            assert sample.status is Status.PREFILL
            self.check_rows(sample)
        for piece in action.pieces:
            sample = piece.sequence
            for n in range(piece.begin, piece.end):
                self.memory[self.slot(sample.block_table, n)] = (tuple(sample.prompt_ids[: n + 1]), "prefill")
            sample.num_cached = piece.end
            self.computed += piece.end - piece.begin
            if sample.scoring is not None and sample not in self.computed_for:
                self.computed_for[sample] = piece.begin
        for piece in action.pieces:
            self.prefilled(piece.sequence)

    def prefilled(self, sample: Sample) -> None:
        for twin, copy in self.scheduler.prefilled(sample):
            size = self.pool.block_size
            for n in range(size if copy else 0):
                self.memory[copy[1] * size + n] = self.memory.get(copy[0] * size + n)  # type: ignore[index]
            assert twin.prompt_ids == sample.prompt_ids
            assert twin.status is Status.RUNNING
            self.started.append(twin)
            if twin.scoring is not None:
                self.finish(twin)
                continue
            twin.history = [*twin.prompt_ids, token_after(twin.prompt_ids, twin.seed)]
            twin.ended = twin.history[-1] == STOP
            self.deliver(twin, twin.history[-1])

    def launch(self, action: Launch) -> None:
        step = []
        for sample in action.sequences:
            assert sample.status is Status.RUNNING
            assert sample.num_in_flight <= self.ahead + 1
            if not sample.ended:  # else the device knows already
                n = len(sample.history) - 1
                self.memory[self.slot(sample.block_table, n)] = (tuple(sample.history), "step")
                self.check_rows(sample, n + 1)
                sample.history.append(token_after(sample.history, sample.seed))
                sample.ended = sample.history[-1] == STOP
            step.append((sample, sample.history[-1]))
        self.steps.append(step)

    def verify(self, action: Launch) -> None:
        """A step with rows for draft tokens: how many are asked for, proposed and right depends on the history."""
        known, rows = len(self.pool._known), []
        for sample in action.sequences:
            assert sample.num_in_flight == 1
            some = hash(tuple(sample.history))
            room = self.scheduler.draft(sample, min(some % (self.drafts + 1), sample.num_left))
            assert sample.num_in_flight == 1 + room
            draft = self.proposed(sample, some // 7 % (room + 1), some // 11 % (self.drafts + 1))
            self.scheduler.drafted(sample, len(draft))
            assert sample.num_in_flight == 1 + len(draft)
            rows.append((sample, draft))
        assert len(self.pool._known) == known
        for sample, draft in rows:
            n = len(sample.history) - 1
            for k in range(1 + len(draft)):
                self.memory[self.slot(sample.block_table, n + k)] = (tuple(sample.history + draft[:k]), "step")
            self.check_rows(sample, n + 1)
        for sample, draft in rows:
            self.drafted[0] += len(draft)
            for token in [*draft, None]:
                self.scheduler.arrived(sample)
                sample.history.append(token_after(sample.history, sample.seed))
                self.deliver(sample, sample.history[-1])
                if sample.finished or sample.history[-1] != token:
                    break
                self.drafted[1] += 1
            if not sample.finished:
                self.scheduler.verified(sample)
                assert sample.num_in_flight == 0
                assert sample.num_cached == sample.num_tokens - 1
                assert len(sample.block_table) == -(-sample.num_cached // self.pool.block_size)
                self.check_rows(sample)

    def proposed(self, sample: Sample, count: int, right: int) -> list[int]:
        """`count` draft tokens, of which the first `right` are what the model makes next."""
        history = list(sample.history)
        while len(history) < len(sample.history) + count:
            made = len(history) - len(sample.history)
            history.append(token_after(history, sample.seed) + (made >= right))
        return history[len(sample.history) :]

    def read(self) -> None:
        for sample, token in self.steps.popleft():
            if not sample.finished:
                self.scheduler.arrived(sample)
                self.deliver(sample, token)

    def deliver(self, sample: Sample, token: int) -> None:
        sample.token_ids.append(token)
        if sample.over():
            self.finish(sample)

    def finish(self, sample: Sample) -> None:
        self.scheduler.finish(sample)
        sample.ends += 1
        self.order.append(self.samples.index(sample))

    def check_rows(self, sample: Sample, length: int | None = None) -> None:
        """All that the sequence reads is its own history, and each row was written the way it always is."""
        ids = sample.history or sample.prompt_ids
        for n in range(sample.num_cached if length is None else length):
            how = "prefill" if n < len(sample.prompt_ids) else "step"
            assert self.memory[self.slot(sample.block_table, n)] == (tuple(ids[: n + 1]), how)

    def check_blocks(self, max_rows: int) -> None:
        under_way = (Status.PREFILL, Status.RUNNING)
        held = [sample for sample in self.samples if sample.status in under_way]
        assert len(held) <= max_rows
        assert not any(sample.block_table for sample in self.samples if sample.status not in under_way)
        assert len({block for sample in held for block in sample.block_table}) + self.pool.free_blocks == (
            self.pool.num_blocks
        )

    def check_done(self, aborted: tuple[int, ...] = ()) -> None:
        assert all(sample.finished for sample in self.samples)
        assert all(sample.ends == 1 for n, sample in enumerate(self.samples) if n not in aborted)
        assert self.scheduler.sequences == []
        assert self.pool.free_blocks == self.pool.num_blocks
        for sample in self.samples:
            history = list(sample.prompt_ids)
            for token in sample.token_ids:
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


@settings(at_leisure, max_examples=300)
@given(prompts(), st.integers(0, 20), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.integers(1, 9),
       st.sampled_from([1, 2, 5]), st.integers(0, 2), st.integers(0, 5), st.lists(st.integers(0, 7), max_size=3),
       st.lists(st.integers(1, 30), max_size=3), st.lists(st.integers(0, 12), max_size=4), st.booleans(),
       st.sampled_from([0, 0, 1, 3, 7]))  # fmt: skip
@example([([1] * 8, 20, 5), ([1] * 9, 20, 5)], 0, 4, 1, 9, 1, 2, 0, [], [], [], False, 0)
@example([([1] * 8, 20, 5), ([1] * 9, 20, 5)], 0, 4, 1, 9, 1, 2, 0, [], [], [5, 7], True, 3)
@example([([1] * 8, 20, 5), ([1] * 9, 20, 5)], 0, 4, 1, 9, 1, 0, 0, [], [], [], False, 7)
def test_every_sequence_finishes_once_with_its_own_tokens(
    many: list[tuple[list[int], int, int]], spare: int, size: int, blocks_a_chunk: int, max_rows: int, pieces: int,
    ahead: int, late: int, aborted: list[int], scored: list[int], cuts: list[int], together: bool,
    drafts: int,
) -> None:  # fmt: skip
    """Whatever the pool's size, as long as the longest sequence fits: nothing leaks, nothing is shared by mistake.

    They are of several calls. Some come late, some are aborted, and some are scored; steps verify drafts, right and wrong.
    """
    share = size * blocks_a_chunk
    least = max(-(-(len(ids) + most) // size) for ids, most, _ in many)
    machine = FakeMachine(many, least + spare, size, share, ahead, together, drafts)
    for n, start in enumerate(scored):
        prompt = many[n % len(many)][0]
        machine.samples.insert(n * 3 % (len(machine.samples) + 1), Sample(prompt, 0, 0, min(start, len(prompt))))
    leaving = tuple(n for n in aborted if n < len(machine.samples))
    machine.run(max_rows, share * pieces, min(late, len(machine.samples)), leaving, cuts)
    machine.check_done(leaving)
    for sample, begin in machine.computed_for.items():
        assert sample.scoring is not None
        assert begin <= sample.scoring.first


def test_sequences_of_equal_length_finish_in_their_order() -> None:
    many = [([1, 2, 3, number], 1, 1) for number in range(4, 20)]
    machine = FakeMachine(many, 20, 4, 4, 0)
    machine.run(3, 4)
    machine.check_done()
    assert machine.order == list(range(16))


def prompts_in_order(machine: FakeMachine) -> list[int]:
    """The first id of each prompt, in the order in which they were computed."""
    pieces = [action.pieces for action in machine.actions if isinstance(action, Prefill)]
    return [piece.sequence.prompt_ids[0] for together in pieces for piece in together]


def test_calls_start_their_prompts_in_turn() -> None:
    machine = FakeMachine([([number], 9, 1) for number in range(1, 13)], 40, 4, 4, 0)
    machine.run(2, 4, cuts=(7, 8))
    machine.check_done()
    assert prompts_in_order(machine) == [1, 8, 9, 2, 10, 3, 11, 4, 12, 5, 6, 7]


def test_a_call_that_comes_late_does_not_wait_for_all_prompts_before_it() -> None:
    machine = FakeMachine([([number], 9, 1) for number in range(1, 102)], 40, 4, 4, 0)
    machine.run(4, 4, late=1)
    machine.check_done()
    assert prompts_in_order(machine).index(101) < 8


def test_samples_of_one_prompt_start_together_though_other_calls_wait() -> None:
    machine = FakeMachine([([1, 2, 3], 9, 4), ([4], 9, 1), ([5], 9, 2)], 40, 4, 4, 0)
    machine.run(3, 4, cuts=(5,))
    machine.check_done()
    assert [sample.prompt_ids[0] for sample in machine.started] == [1, 1, 1, 5, 1, 5, 4]
    # of three rows, so that the last samples compute their prompts anew
    assert prompts_in_order(machine) == [1, 5, 1, 5, 4]


@pytest.mark.parametrize("together", [False, True])
def test_equal_beginnings_are_computed_once(together: bool) -> None:
    stem = list(range(1, 65))
    many = [([*stem, 100 + number], 2, 1) for number in range(10)]
    machine = FakeMachine(many, 100, 4, 4, 0, together)
    machine.run(4, 16)
    machine.check_done()
    assert machine.computed == 64 + 10


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("length", [10, 3])  # more and less than a chunk
def test_samples_of_a_prompt_compute_it_once_and_share_its_blocks(length: int, together: bool) -> None:
    machine = FakeMachine([(list(range(1, length + 1)), 3, 8)], 3 + 8 * 2, 4, 8, 0, together)
    machine.run(8, 8)
    machine.check_done()
    assert machine.computed == length


@pytest.mark.parametrize("together", [False, True])
def test_samples_share_a_prompt_that_was_preempted_in_progress(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    preempted = []
    make_room = Scheduler._make_room
    monkeypatch.setattr(Scheduler, "_make_room", lambda policy: preempted.extend(policy._filling) or make_room(policy))
    running, prompt = [1, 2, 3] * 7, [5] * 150
    machine = FakeMachine([(running, 16, 1), (prompt, 2, 2)], 45, 4, 4, 0, together)
    machine.samples[0].seed = next(seed for seed in range(10**5) if machine.would_make(running, 16, seed) == 16)
    machine.run(4, 4)
    machine.check_done()
    assert preempted == [machine.samples[1]]
    ends = [piece for pieces in pieces_of(machine) for piece in pieces if piece[2] == len(prompt)]
    assert len(ends) == 1  # the other sample has no piece of its own


def pieces_of(machine: FakeMachine) -> list[list[tuple[int, int, int]]]:
    """The pieces of each action that computed prompts: the first id of the prompt, begin and end."""
    found = [action.pieces for action in machine.actions if isinstance(action, Prefill)]
    return [[(piece.sequence.prompt_ids[0], piece.begin, piece.end) for piece in pieces] for pieces in found]


def test_short_prompts_are_computed_together_up_to_a_piece() -> None:
    machine = FakeMachine([([number] * 6, 1, 1) for number in range(1, 6)], 100, 4, 4, 0, together=True)
    machine.run(8, 16)
    machine.check_done()
    # the third ends at a multiple of the chunk, and its rest begins the next action
    assert pieces_of(machine) == [[(1, 0, 6), (2, 0, 6), (3, 0, 4)], [(3, 4, 6), (4, 0, 6), (5, 0, 6)]]


def test_prompts_are_computed_together_as_rows_and_blocks_allow() -> None:
    few_rows = FakeMachine([([number] * 6, 1, 1) for number in range(1, 6)], 100, 4, 4, 0, together=True)
    few_rows.run(2, 64)
    few_rows.check_done()
    assert [len(pieces) for pieces in pieces_of(few_rows)] == [2, 2, 1]
    few_blocks = FakeMachine([([number] * 6, 1, 1) for number in range(1, 6)], 5, 4, 4, 0, together=True)
    few_blocks.run(8, 64)
    few_blocks.check_done()
    assert [len(pieces) for pieces in pieces_of(few_blocks)] == [2, 2, 1]


def test_a_prompt_waits_for_the_beginning_that_it_shares() -> None:
    one, other = [1] * 8, [2] * 8
    many = [([*one, 5], 1, 1), ([*other, 6], 1, 1), ([*one, 7], 1, 1), ([*other, 8], 1, 1)]
    machine = FakeMachine(many, 100, 4, 4, 0, together=True)
    machine.run(8, 64)
    machine.check_done()
    assert pieces_of(machine) == [[(1, 0, 9), (2, 0, 9)], [(1, 8, 9), (2, 8, 9)]]


@at_leisure
@given(prompts(), st.sampled_from([1, 2, 4]), st.integers(1, 9), st.sampled_from([1, 2, 5]))
def test_together_no_token_is_computed_that_could_be_shared(
    many: list[tuple[list[int], int, int]], chunk: int, max_rows: int, pieces: int
) -> None:
    computed = []
    for together in (False, True):
        machine = FakeMachine([(ids, most, 1) for ids, most, _ in many], 1000, chunk, chunk, 0, together)
        machine.run(max_rows, chunk * pieces)
        machine.check_done()
        computed.append(machine.computed)
    assert computed[0] == computed[1]


def test_a_sequence_that_never_fits_is_refused_and_leaves_nothing() -> None:
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


@pytest.mark.parametrize(("most", "scored_from"), [(0, 1), (1, None)])
def test_prompts_that_take_no_steps_come_one_piece_between_steps(most: int, scored_from: int | None) -> None:
    """However many rows are empty, because such prompts never fill them."""
    machine = FakeMachine([([1, 2, 3], 20, 1)], 100, 4, 4, 0)
    machine.samples[0].seed = next(seed for seed in range(1000) if machine.would_make([1, 2, 3], 20, seed) == 20)
    machine.samples += [Sample([5 + n] * 16, most, 0, scored_from) for n in range(4)]
    machine.run(8, 4)
    machine.check_done()
    kinds = "".join(type(action).__name__[0] for action in machine.actions)
    assert "PP" not in kinds[2:]
    assert kinds.count("P") == 1 + 4 * 4


def test_the_youngest_makes_room_and_comes_back() -> None:
    many = [([1, 2, 3, 4], 20, 1), ([5, 6, 7, 8], 20, 1)]
    machine = FakeMachine(many, 8, 4, 4, 0)
    for sample in machine.samples:
        prompt = sample.prompt_ids
        sample.seed = next(seed for seed in range(1000) if machine.would_make(prompt, 20, seed) == 20)
    machine.run(2, 4)
    machine.check_done()
    moved = [action for action in machine.actions if isinstance(action, SwapOut | SwapIn)]
    assert [type(action) for action in moved] == [SwapOut, SwapIn]
    assert {action.sequence for action in moved} == {machine.samples[1]}
    assert moved[1].kept == 0  # its last token is always computed: a chunk is known only where more follows
    assert machine.order == [0, 1]
