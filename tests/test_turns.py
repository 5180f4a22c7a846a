"""One engine, called from many places at once: threads, iterators that are read in turn, or left. Tokens are compared."""

from __future__ import annotations

import asyncio
import gc
import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from decoders import Decoder, make, prompt
from fake_engine import TOKENIZER, all_free, engine_over
from fakes import VOCAB, FakeCache, TableDecoder
from tiny import config

from baize_engine import Engine, SamplingParams
from baize_engine.errors import RequestError
from baize_engine.generation.loop import MAX_ROWS
from baize_engine.turns import Turns

THREADS = 8
PROMPTS = [prompt(length, length) for length in (3, 17, 40, 5, 33, 64)]
PARAMS = [
    SamplingParams(max_new_tokens=20, ignore_eos=True),
    SamplingParams(max_new_tokens=12, temperature=1.0, seed=4, n=3),
    SamplingParams(max_new_tokens=15, temperature=0.7, seed=9, repetition_penalty=1.3, logprobs=1),
]
CASES = list(itertools.product(range(len(PROMPTS)), range(len(PARAMS))))
LARGE, SMALL = 2048, 128  # tokens of the cache; in the small one hardly two of these fit beside each other


class Bytes:
    """Texts for ids below 96: TOKENIZER's pieces are bytes, most of which are characters by themselves."""

    def __getattr__(self, name: str) -> Any:
        return getattr(TOKENIZER, name)


def engine_of(tokens: int, ahead: bool = False) -> Engine:
    decoder = Decoder(make(config(max_position_embeddings=128)), tokens, ahead=ahead)
    return decoder.engine(max_model_len=120, tokenizer=Bytes())


class Wanted:
    """What one thread gets of an engine by itself."""

    def __init__(self) -> None:
        engine = engine_of(LARGE)
        self.tokens = {case: self.ask(engine, case) for case in CASES}
        self.texts = [engine.generate(ids, PARAMS[0])[0].text for ids in PROMPTS]
        self.scores = [engine.score(ids, [[5, 9], [7]]) for ids in PROMPTS]
        self.logprobs = [engine.prompt_logprobs([ids], top=2) for ids in PROMPTS]

    @staticmethod
    def ask(engine: Engine, case: tuple[int, int]) -> list[list[int]]:
        return [done.token_ids for done in engine.generate(PROMPTS[case[0]], PARAMS[case[1]])]


@pytest.fixture(scope="module")
def wanted() -> Wanted:
    return Wanted()


def in_threads(call: Callable[[int], None], count: int = THREADS) -> None:
    """Calls it from so many threads that begin together; raises what one of them raised."""
    begin = threading.Barrier(count)

    def one(number: int) -> None:
        begin.wait()
        call(number)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(one, number) for number in range(count)]:
            done.result()


@pytest.mark.parametrize(("tokens", "ahead"), [(LARGE, False), (SMALL, False), (SMALL, True), (LARGE, True)])
def test_eight_threads_get_the_tokens_that_one_gets(wanted: Wanted, tokens: int, ahead: bool) -> None:
    engine = engine_of(tokens, ahead)

    def calls(number: int) -> None:
        for k in range(15):
            case = CASES[(5 * number + 7 * k) % len(CASES)]
            ids, text = PROMPTS[case[0]], wanted.texts[case[0]]
            kind = (number + k) % 5
            if kind == 0:
                assert "".join(engine.stream(ids, PARAMS[0])) == text
            elif kind == 1:
                assert engine.score(ids, [[5, 9], [7]]) == wanted.scores[case[0]]
            elif kind == 2:
                assert engine.prompt_logprobs([ids], top=2) == wanted.logprobs[case[0]]
            elif kind == 3:
                left = engine.stream(ids, PARAMS[0])
                assert text.startswith(next(left))  # and is left where it is
            assert wanted.ask(engine, case) == wanted.tokens[case]

    in_threads(calls)
    gc.collect()
    assert engine._cache.free_blocks == engine._cache.num_blocks


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("tokens", [LARGE, SMALL])
def test_streams_of_one_thread_that_are_read_in_turn_with_other_calls(wanted: Wanted, tokens: int, ahead: bool) -> None:
    """In the small cache each has to copy the others out of it, every time."""
    engine = engine_of(tokens, ahead)
    streams = [engine.stream(ids, PARAMS[0]) for ids in PROMPTS]
    texts = [""] * len(streams)
    for turn, _ in enumerate(range(8)):
        for number, stream in enumerate(streams):
            texts[number] += next(stream, "")
        case = CASES[turn]
        assert wanted.ask(engine, case) == wanted.tokens[case]
        assert engine.score(PROMPTS[case[0]], [[5, 9], [7]]) == wanted.scores[case[0]]
        assert engine.next_token_logprobs([PROMPTS[5]], [3])[0][0] < 0
    for number, stream in enumerate(streams):
        texts[number] += "".join(stream)
    assert texts == wanted.texts
    assert engine._cache.free_blocks == engine._cache.num_blocks


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_of_many_samples_give_way_to_each_other(wanted: Wanted, ahead: bool) -> None:
    engine = engine_of(SMALL, ahead)
    alone = {(p, n): one for (p, s), found in wanted.tokens.items() if s == 1 for n, one in enumerate(found)}
    runs = [engine.completions(PROMPTS, PARAMS[1]) for _ in range(3)]
    found = [list(each) for each in zip(*runs, strict=True)]
    assert len(found) == len(PROMPTS)
    for per_prompt in found:
        for completions in per_prompt:
            assert [done.token_ids for done in completions] == [
                alone[done.prompt_index, done.index] for done in completions
            ]


def test_a_sample_stopped_by_its_reader_while_it_was_copied_out(wanted: Wanted) -> None:
    """The stop string is complete in a piece that is told before the stream is asked to go on."""
    engine, ids = engine_of(SMALL), PROMPTS[2]
    stop = wanted.texts[2][1]
    stream = engine.stream_many(
        [ids, PROMPTS[1]], [SamplingParams(max_new_tokens=20, ignore_eos=True, stop=stop), PARAMS[0]]
    )
    texts = ["", ""]
    for index, _, piece in stream:
        texts[index] += piece
        assert wanted.ask(engine, (5, 0)) == wanted.tokens[5, 0]  # needs nearly all of the cache
    assert texts == [wanted.texts[2].partition(stop)[0], wanted.texts[1]]
    assert engine._cache.free_blocks == engine._cache.num_blocks


def test_calls_in_asyncios_threads(wanted: Wanted) -> None:
    engine = engine_of(LARGE)

    async def answer(case: tuple[int, int]) -> list[list[int]]:
        return await asyncio.to_thread(wanted.ask, engine, case)

    async def read(number: int) -> str:
        stream, text = engine.stream(PROMPTS[number], PARAMS[0]), ""
        while piece := await asyncio.to_thread(next, stream, ""):  # each step perhaps in another thread
            text += piece
        return text

    async def both() -> tuple[list[list[list[int]]], list[str]]:
        answers = asyncio.gather(*(answer(case) for case in CASES))
        texts = asyncio.gather(*(read(number) for number in range(len(PROMPTS))))
        return await answers, await texts

    answers, texts = asyncio.run(both())
    assert answers == [wanted.tokens[case] for case in CASES]
    assert texts == wanted.texts


class Pausing(TableDecoder):
    """Calls `at_step`, if it is set, in the middle of every computation."""

    def __init__(self) -> None:
        super().__init__(VOCAB)
        self.at_step: Callable[[], None] | None = None

    def forward(self, token_ids, sequences):  # type: ignore[no-untyped-def]
        if self.at_step is not None:
            self.at_step()
        return super().forward(token_ids, sequences)


def pausing(blocks: int = 64) -> tuple[Engine, Pausing]:
    decoder, cache = Pausing(), FakeCache(blocks)
    return engine_over(decoder, cache, tokenizer=TOKENIZER), decoder


LONG = SamplingParams(ignore_eos=True, max_new_tokens=40)


@pytest.mark.parametrize("where", ["the same thread", "another thread"])
def test_a_stream_left_in_the_middle_of_another_call_is_freed_after_it(where: str) -> None:
    """As the garbage collector may leave it: anywhere."""
    engine, decoder = pausing()
    wanted = engine.generate([1, 5], LONG)
    streams = [engine.stream([1, 7 + n], LONG) for n in range(3)]
    for number in range(3):
        next(streams[number])
    held = engine._cache.num_blocks - engine._cache.free_blocks
    seen = []

    def leave() -> None:
        decoder.at_step = None
        if where == "the same thread":
            streams.clear()
        else:
            other = threading.Thread(target=streams.clear)
            other.start()
            other.join()  # which does not wait for this call
        seen.append(engine._cache.num_blocks - engine._cache.free_blocks)

    decoder.at_step = leave
    assert engine.generate([1, 5], LONG) == wanted
    assert seen[0] >= held > 0  # not freed under the feet of who was at work
    assert all_free(engine)
    assert engine._cache.tenants == []


def test_close_ends_streams_and_refuses_calls() -> None:
    engine, decoder = pausing()
    streams = [engine.stream([1, 5], LONG), engine.completions([[1, 5]], LONG), engine.stream_many([[1, 5]], LONG)]
    next(streams[0])
    next(streams[2])
    cache = engine._cache
    engine.close()
    assert cache.free_blocks == cache.num_blocks
    assert (engine._decoder, engine._cache, engine._steps) == (None, None, None)
    for stream in streams:
        with pytest.raises(RequestError, match="this engine is closed"):
            next(stream)
    for call in (
        lambda: engine.generate([1, 5]),
        lambda: engine.stream([1, 5]),
        lambda: engine.score([1, 5], [[7]]),
        lambda: engine.prompt_logprobs([1, 5]),
        lambda: engine.next_token_logprobs([1, 5], [7]),
        lambda: engine.encode("a"),
    ):
        with pytest.raises(RequestError, match="this engine is closed"):
            call()
    engine.close()
    assert decoder is not None


def test_close_in_another_thread_ends_what_is_under_way_and_what_waits() -> None:
    engine, decoder = pausing()
    cache, at_work, go_on = engine._cache, threading.Event(), threading.Event()

    def wait() -> None:
        at_work.set()
        assert go_on.wait(60)

    decoder.at_step = wait
    with ThreadPoolExecutor(3) as pool:
        working = pool.submit(engine.generate, [1, 5], LONG)
        assert at_work.wait(60)
        waiting = pool.submit(engine.generate, [1, 6], LONG)
        until(lambda: engine._turns._door.locked())
        closing = pool.submit(engine.close)
        until(lambda: engine._turns._closed)
        go_on.set()
        closing.result(60)
        assert engine._cache is None
        for ended in (working, waiting):
            with pytest.raises(RequestError, match="this engine is closed"):
                ended.result(60)
    assert cache.free_blocks == cache.num_blocks


def test_a_call_from_within_a_call_is_refused_and_does_not_wait_for_ever() -> None:
    engine, decoder = pausing()
    wanted, said = engine.generate([1, 5], LONG), []

    def again() -> None:
        decoder.at_step = None
        with pytest.raises(RequestError) as refusal:  # as a signal's handler would call it
            engine.generate([1, 6])
        said.append(str(refusal.value))

    decoder.at_step = again
    assert engine.generate([1, 5], LONG) == wanted
    assert said == ["this thread is in the middle of another call to this engine, wanted that to end first"]
    decoder.at_step = engine.close
    with pytest.raises(RequestError, match="this engine is closed"):
        engine.generate([1, 5], LONG)
    assert engine._cache is None


def test_an_error_or_ctrl_c_in_a_turn_ends_the_turn() -> None:
    engine, decoder = pausing()
    wanted = engine.generate([1, 5], LONG)

    def interrupt() -> None:
        decoder.at_step = None
        raise KeyboardInterrupt

    for call in (lambda: engine.generate([1, 5], LONG), lambda: next(engine.stream([1, 5], LONG))):
        decoder.at_step = interrupt
        with pytest.raises(KeyboardInterrupt):
            call()
        assert all_free(engine)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(engine.generate, [1, 5], LONG).result(60) == wanted


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_who_waits_is_next_and_not_who_has_just_been() -> None:
    turns, order = Turns(), []

    def other() -> None:
        with turns.turn():
            order.append("other")

    with turns.turn():
        order.append("first")
        thread = threading.Thread(target=other)
        thread.start()
        until(turns._door.locked)
    with turns.turn():
        order.append("first again")
    thread.join()
    assert order == ["first", "other", "first again"]


def test_an_iterator_that_was_never_begun_holds_nothing() -> None:
    turns, begun = Turns(), []

    def run():  # type: ignore[no-untyped-def]
        begun.append(1)
        yield 1

    turns.each(run())
    gc.collect()
    assert begun == []
    assert not turns._under_way


def test_more_rows_than_run_at_a_time_in_threads() -> None:
    engine, _ = pausing(40)
    prompts = [[1, 5 + n % 90] for n in range(MAX_ROWS + 9)]
    few = SamplingParams(ignore_eos=True, max_new_tokens=6)
    wanted = [done.token_ids for done in engine.generate(prompts, few)]
    stream = engine.stream(prompts[0], LONG)
    next(stream)

    def call(_: int) -> None:
        assert [done.token_ids for done in engine.generate(prompts, few)] == wanted

    in_threads(call, 4)
    stream.close()
    assert all_free(engine)


@pytest.mark.parametrize("number", range(40))
def test_ctrl_c_leaves_no_turn_taken(number: int) -> None:
    """Raised as the so manieth function of Python begins, or a generator goes on: where CPython looks for signals."""
    turns, left = Turns(), [number]

    def interrupt(frame: Any, event: str, _: object) -> None:
        if event == "call":
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt

    def use() -> None:
        for _ in range(3):
            with turns.turn():
                turns._later(lambda: None)

    sys.settrace(interrupt)
    try:
        use()
    except KeyboardInterrupt:
        sys.settrace(None)
    finally:
        sys.settrace(None)
    gc.collect()
    had: list[bool] = []
    other = threading.Thread(target=lambda: had.append(_takes(turns)), daemon=True)
    other.start()
    other.join(30)
    assert had == [True]
    assert _takes(turns)  # nor is this thread taken for one in the middle of a call


def _takes(turns: Turns) -> bool:
    with turns.turn():
        return True


@pytest.mark.parametrize("asked", ["close", "turn"])
def test_a_handler_that_comes_while_its_thread_waits_for_a_turn(asked: str) -> None:
    turns, begun, told = Turns(), threading.Event(), []
    leave = threading.Event()

    def hold() -> None:
        with turns.turn():
            begun.set()
            leave.wait(60)

    def handler(*_: object) -> None:
        if asked == "close":
            turns.close(lambda: told.append("let go"))
        else:
            with pytest.raises(RequestError, match="in the middle of another call"):
                _takes(turns)
            told.append("refused")
        leave.set()

    worker = threading.Thread(target=hold, daemon=True)
    worker.start()
    assert begun.wait(60)
    before = signal.signal(signal.SIGUSR1, handler)
    me = threading.get_ident()

    def send() -> None:
        until(lambda: turns._door.locked())
        signal.pthread_kill(me, signal.SIGUSR1)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        if asked == "close":
            with pytest.raises(RequestError, match="this engine is closed"):
                _takes(turns)
        else:
            assert _takes(turns)
    finally:
        signal.signal(signal.SIGUSR1, before)
    worker.join(60)
    sender.join(60)
    assert told == ["let go" if asked == "close" else "refused"]


def test_close_ends_scores_that_are_under_way() -> None:
    engine, decoder = pausing()
    decoder.at_step = None
    done = []

    def pairs() -> Iterator[list[int]]:
        for number in range(5):
            done.append(number)
            if number == 2:
                engine.close()
            yield [5]

    with pytest.raises(RequestError, match="this engine is closed"):
        list(engine._while_open(pairs()))
    assert done == [0, 1, 2]
